"""utils/lowrank.py: the maths of lesson 01."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import lowrank

quick = settings(deadline=None, max_examples=60)
sizes = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(
    lambda d: st.tuples(st.just(d[0]), st.just(d[1]), st.integers(1, min(d)))
)
seeds = st.integers(0, 999)


def norm(M) -> float:
    return float(np.linalg.norm(M))


# --- rank ---


@pytest.mark.parametrize(
    ("matrix", "rank"),
    [
        ([[1, 2, 0], [3, 6, 1], [2, 4, 5]], 2),  # the second column is twice the first
        (np.eye(4), 4),
        (np.zeros((3, 2)), 0),
        (np.ones((5, 3)), 1),
        ([[0.0]], 0),
        (np.diag([1, 1e-3, 1e-20]), 2),
    ],
)
def test_rank(matrix, rank):
    assert lowrank.numerical_rank(matrix) == rank


def test_rank_depends_on_the_tolerance():
    matrix = np.diag([1.0, 0.1, 0.01])
    assert [lowrank.numerical_rank(matrix, rtol) for rtol in (0.5, 0.05, 0.005)] == [1, 2, 3]


@quick
@given(sizes, seeds)
def test_a_product_of_thin_matrices_has_their_rank(size, seed):
    m, n, r = size
    rng = np.random.default_rng(seed)
    product = rng.normal(size=(m, r)) @ rng.normal(size=(r, n))
    assert lowrank.numerical_rank(product, rtol=1e-10) == r == np.linalg.matrix_rank(product, rtol=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_is_not_counted_as_rank(dtype):
    rng = np.random.default_rng(0)
    product = rng.normal(size=(60, 3)).astype(dtype) @ rng.normal(size=(3, 40)).astype(dtype)
    assert lowrank.numerical_rank(product) == 3


# --- the best approximation ---


@quick
@given(sizes, seeds)
def test_nothing_of_rank_r_is_nearer(size, seed):
    m, n, r = size
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(m, n))
    best = lowrank.best_rank_r(matrix, r)
    error = norm(matrix - best)
    s = np.linalg.svd(matrix, compute_uv=False)
    assert lowrank.numerical_rank(best, rtol=1e-10) <= r
    assert error == pytest.approx(np.sqrt((s[r:] ** 2).sum()), abs=1e-10)
    assert error / norm(matrix) == pytest.approx(lowrank.tail_error(s, r), abs=1e-10)

    u, s, vt = np.linalg.svd(best)
    B, A = u[:, :r] * s[:r], vt[:r]
    for nudge in (1e-3, 1e-1, 1, 10):  # rivals beside the best, and far from it
        for _ in range(5):
            rival = (B + nudge * rng.normal(size=B.shape)) @ (A + nudge * rng.normal(size=A.shape))
            assert norm(matrix - rival) >= error - 1e-10
    any_A = rng.normal(size=(r, n))
    fitted = np.linalg.lstsq(any_A.T, matrix.T)[0].T @ any_A  # a random A with the best B for it
    assert norm(matrix - fitted) >= error - 1e-10


def test_full_rank_is_exact_and_the_error_falls_with_r():
    matrix = np.random.default_rng(0).normal(size=(8, 5))
    errors = [norm(matrix - lowrank.best_rank_r(matrix, r)) for r in range(1, 6)]
    assert errors == sorted(errors, reverse=True) and errors[0] > errors[3] > 0.1
    assert errors[-1] == pytest.approx(0, abs=1e-12)


def test_tail_error():
    assert lowrank.tail_error([4, 3, 0], 0) == 1
    assert lowrank.tail_error([4, 3, 0], 1) == pytest.approx(0.6)
    assert lowrank.tail_error([4, 3, 0], 2) == 0


# --- LoRA's update ---


def test_delta_by_hand():
    B, A = np.array([[1.0], [2.0]]), np.array([[3.0, 4.0, 5.0]])
    np.testing.assert_array_equal(lowrank.delta(B, A, 0.5), [[1.5, 2, 2.5], [3, 4, 5]])
    two = lowrank.delta(np.hstack([B, B]), np.vstack([A, A]), 0.5)  # r doubled: each half counts half
    np.testing.assert_array_equal(two, lowrank.delta(B, A, 0.5))


@quick
@given(sizes, st.floats(0.1, 64), seeds)
def test_gradients_against_numerical_differences(size, alpha, seed):
    m, n, r = size
    rng = np.random.default_rng(seed)
    B, A, target = rng.normal(size=(m, r)), rng.normal(size=(r, n)), rng.normal(size=(m, n))

    def loss(B, A) -> float:
        return 0.5 * norm(lowrank.delta(B, A, alpha) - target) ** 2

    told = lowrank.gradients(B, A, alpha, lowrank.delta(B, A, alpha) - target)
    h = 1e-5
    for gradient, factor, rest in ((told[0], B, lambda F: (F, A)), (told[1], A, lambda F: (B, F))):
        assert gradient.shape == factor.shape
        for place in np.ndindex(*factor.shape):
            step = np.zeros_like(factor)
            step[place] = h
            numerical = (loss(*rest(factor + step)) - loss(*rest(factor - step))) / (2 * h)
            assert gradient[place] == pytest.approx(numerical, rel=1e-4, abs=1e-5 * (1 + loss(B, A)))


def test_from_B_at_zero_only_B_moves_first():
    rng = np.random.default_rng(0)
    dB, dA = lowrank.gradients(np.zeros((4, 2)), rng.normal(size=(2, 3)), 8, rng.normal(size=(4, 3)))
    assert not dA.any() and dB.all()


# --- counts (facts that the lessons print) ---


@pytest.mark.parametrize(
    ("d_out", "d_in", "r", "whole", "lora"),
    [
        (768, 768, 4, 589_824, 6_144),
        (1024, 1024, 4, 1_048_576, 8_192),
        (100, 100, 3, 10_000, 600),
        (6, 6, 2, 36, 24),
        (12_288, 12_288, 1, 150_994_944, 4_718_592 // (96 * 2)),  # GPT-3: 4.7 M over query and value of 96 layers
        (12_288, 12_288, 8, 150_994_944, 37_748_736 // (96 * 2)),  # and 37.7 M at r = 8
    ],
)
def test_counts(d_out, d_in, r, whole, lora):
    assert d_out * d_in == whole
    assert lowrank.lora_parameters(d_out, d_in, r) == lora


@quick
@given(sizes)
def test_below_break_even_lora_is_smaller_and_above_it_larger(size):
    m, n, r = size
    even = lowrank.break_even_rank(m, n)
    gain = m * n - lowrank.lora_parameters(m, n, r)
    assert gain == pytest.approx((even - r) * (m + n), abs=1e-9)
    assert (gain > 0) == (r < even - 1e-9)


def test_break_even_of_a_square_is_half_its_side():
    assert lowrank.break_even_rank(768, 768) == 384


@pytest.mark.parametrize("r", [0, -1, 5, 1.0, "2", None, True])
def test_bad_rank(r):
    told = rf"r={r!r}, .*whole number from 1 to 4 for a 6 x 4 matrix"
    with pytest.raises(ValueError, match=told):
        lowrank.best_rank_r(np.ones((6, 4)), r)
    with pytest.raises(ValueError, match=told):
        lowrank.lora_parameters(6, 4, r)


def test_ranks_from_numpy_are_welcome():
    assert lowrank.lora_parameters(6, 4, np.int64(4)) == 40
