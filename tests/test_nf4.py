"""utils/nf4.py: the maths of lesson 05, on its own and beside bitsandbytes."""

from statistics import NormalDist

import bitsandbytes.functional as bnb
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file

from utils import assets, nf4

quick = settings(deadline=None, max_examples=40)
LEVELS = {
    "nf4": nf4.nf4_levels(),
    "fp4": nf4.fp4_levels(),
    "int4": nf4.int4_levels(),
    "dynamic": nf4.dynamic_levels(),
}
kinds = st.sampled_from(sorted(LEVELS))
four_bits = st.sampled_from(["nf4", "fp4", "int4"])
entries = st.floats(-1e6, 1e6, width=32).map(lambda x: x if abs(x) > 1e-6 else 0.0)
weights = arrays(np.float32, st.integers(1, 200), elements=entries)
blocks = st.integers(1, 70)


def theirs(weight, kind: str, **options):
    """(packed bytes, quant state) from bitsandbytes."""
    packed, state = bnb.quantize_4bit(torch.as_tensor(weight), blocksize=64, quant_type=kind, **options)
    return packed.numpy().ravel(), state


def their_levels(kind: str):
    return bnb.get_4bit_type(kind, device="cpu").numpy()


def assert_only_ties(ours, other, values, absmax, levels, block, agree, within):
    """Codes agree for a share of `agree`; where they differ, both levels are as near to value / absmax, but for `within`."""
    at = np.flatnonzero(ours != other)
    assert at.size <= (1 - agree) * ours.size
    scaled = values[at].astype(float) / absmax[at // block]
    near, far = np.abs(scaled - levels[ours[at]]), np.abs(scaled - levels[other[at]])
    assert (near <= far + 1e-6).all() and (far <= near + within).all()


@pytest.fixture(scope="module")
def linears():
    """The encoder's 36 linear weights."""
    tensors = load_file(assets.path("minilm-roberta") / "model.safetensors")
    found = [w for name, w in tensors.items() if ".layer." in name and w.ndim == 2]
    assert len(found) == 36 and sum(w.size for w in found) == 10_616_832
    return found


# --- levels ---


def test_nf4_levels_are_bitsandbytes():
    levels = LEVELS["nf4"]
    np.testing.assert_allclose(levels, their_levels("nf4"), rtol=0, atol=1.3e-7)
    np.testing.assert_array_equal(levels[[0, 7, 15]], [-1, 0, 1])


def test_nf4_levels_are_equal_steps_in_probability():
    outermost = round(1 - (1 / 30 + 1 / 32) / 2, 7)
    normal = NormalDist()
    share = [normal.cdf(level * normal.inv_cdf(outermost)) for level in LEVELS["nf4"].tolist()]
    assert (share[0], share[7], share[15]) == pytest.approx((1 - outermost, 0.5, outermost), abs=1e-7)
    np.testing.assert_allclose(np.diff(share[:8]), (outermost - 0.5) / 7, atol=1e-7)
    np.testing.assert_allclose(np.diff(share[7:]), (outermost - 0.5) / 8, atol=1e-7)


def test_fp4_levels():
    np.testing.assert_array_equal(LEVELS["fp4"], their_levels("fp4"))
    e2m1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6]) / 6  # the 4-bit float of the OCP standard
    ours = np.sort(LEVELS["fp4"][:8])
    assert np.flatnonzero(~np.isclose(ours, e2m1)).tolist() == [1]
    assert ours[1] == np.float32(1 / 192)


def test_int4_levels():
    np.testing.assert_allclose(LEVELS["int4"], torch.linspace(-1, 1, 15), rtol=0, atol=6e-8)
    assert LEVELS["int4"][7] == 0


def test_dynamic_levels_are_bitsandbytes():
    np.testing.assert_allclose(LEVELS["dynamic"], bnb.create_dynamic_map().numpy(), rtol=0, atol=6e-8)
    assert LEVELS["dynamic"].size == 256


@pytest.mark.parametrize("kind", LEVELS)
def test_levels_come_back_as_themselves(kind):
    levels = LEVELS[kind]
    assert levels.dtype == np.float32
    for scale in (1, 0.25, 512):
        codes, absmax = nf4.quantise(levels * scale, levels, block=levels.size)
        assert absmax.tolist() == [scale]
        np.testing.assert_array_equal(levels[codes], levels)
    assert len(set(codes.tolist())) == len(set(levels.tolist()))


# --- to codes and back ---


@quick
@given(weights, kinds, blocks)
def test_every_value_goes_to_its_nearest_level(weight, kind, block):
    levels = LEVELS[kind]
    codes, absmax = nf4.quantise(weight, levels, block)
    assert codes.dtype == np.uint8 and absmax.dtype == np.float32
    starts = range(0, weight.size, block)
    assert absmax.tolist() == [np.abs(weight[i : i + block]).max() for i in starts]  # the last block on its own
    widest = np.diff(np.unique(levels)).max()
    back = nf4.dequantise(codes, absmax, levels, weight.shape, block)
    assert back.dtype == np.float32
    for i, scale in zip(starts, absmax.astype(float), strict=True):
        errors = np.abs(weight[i : i + block].astype(float) - back[i : i + block])
        assert errors.max() <= (widest / 2 + 1e-6) * scale
        best = np.abs(weight[i : i + block, None].astype(float) - levels * scale).min(axis=1)
        assert (errors <= best + 1e-6 * scale).all()


@quick
@given(weights, four_bits, blocks)
def test_a_second_time_changes_nothing(weight, kind, block):
    def once(x):
        return nf4.dequantise(*nf4.quantise(x, LEVELS[kind], block), LEVELS[kind], x.shape, block)

    np.testing.assert_array_equal(once(once(weight)), once(weight))


@quick
@given(weights, kinds, blocks, st.integers(-20, 20))
def test_a_power_of_two_scales_absmax_and_leaves_the_codes(weight, kind, block, power):
    codes, absmax = nf4.quantise(weight, LEVELS[kind], block)
    scaled_codes, scaled_absmax = nf4.quantise(weight * np.float32(2.0**power), LEVELS[kind], block)
    np.testing.assert_array_equal(scaled_codes, codes)
    np.testing.assert_array_equal(scaled_absmax, absmax * 2.0**power)


def test_signs_are_alike_but_not_for_nf4():
    def error_of_both_signs(kind):
        weight = np.random.default_rng(0).normal(size=(40, 64))
        there, back = (nf4.dequantise(*nf4.quantise(w, LEVELS[kind]), LEVELS[kind], w.shape) for w in (weight, -weight))
        return np.abs(there + back).max()

    assert error_of_both_signs("int4") == error_of_both_signs("fp4") == 0
    assert error_of_both_signs("nf4") > 0.1


def test_of_two_levels_equally_near_the_lower():
    levels = [-1, -0.5, 0, 0.5, 1]
    codes, _ = nf4.quantise([1, 0.75, 0.25, -0.25, -0.75], levels)
    assert codes.tolist() == [4, 3, 2, 1, 0]


def test_blocks_run_across_rows():
    _, absmax = nf4.quantise([[1, 2, 3], [4, 5, 6]], LEVELS["nf4"], block=4)
    assert absmax.tolist() == [4, 6]


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("tiny", [0.0, 1e-45, 3e-39])
def test_blocks_of_nothing(kind, tiny):
    weight = np.r_[np.full(4, tiny), np.float32([1, -1, 0, 0]), np.zeros(2)]
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        codes, absmax = nf4.quantise(weight, LEVELS[kind], block=4)
        back = nf4.dequantise(codes, absmax, LEVELS[kind], weight.shape, block=4)
    np.testing.assert_allclose(back, weight, rtol=0, atol=0.008 if kind == "dynamic" else 1e-38)  # which has no -1
    assert absmax.tolist() == [np.float32(tiny), 1, 0] and not back[6:].any()


# --- int8, the whole tensor at once ---


def test_int8_by_hand():
    codes, scale = nf4.quantise_int8([[-254, 127], [1, 3.2]])
    assert scale == 2 and codes.dtype == np.int8
    assert codes.tolist() == [[-127, 64], [0, 2]]
    assert nf4.dequantise_int8(codes, scale).tolist() == [[-254, 128], [0, 4]]


@quick
@given(weights)
def test_int8_errs_by_half_a_step_at_most(weight):
    codes, scale = nf4.quantise_int8(weight)
    assert np.abs(codes.astype(int)).max() == (127 if weight.any() else 0)
    assert np.abs(nf4.dequantise_int8(codes, scale).astype(float) - weight).max() <= scale * 0.50005


def test_one_outlier_costs_the_whole_tensor_and_only_its_block():
    weight = np.random.default_rng(0).normal(size=4096).astype(np.float32)

    def errors(weight):
        whole = nf4.dequantise_int8(*nf4.quantise_int8(weight)) - weight
        blocked = nf4.dequantise(*nf4.quantise(weight, LEVELS["int4"]), LEVELS["int4"], weight.shape) - weight
        return np.abs(whole[64:]).mean(), np.abs(blocked[64:]).mean()

    before = errors(weight)
    weight[0] = 1000
    after = errors(weight)
    assert after[0] > 50 * before[0] and after[1] == before[1]


def test_int8_is_bitsandbytes_on_one_row():
    row = torch.randn(1, 999, generator=torch.Generator().manual_seed(0)).half()
    codes, scale = nf4.quantise_int8(row.numpy())
    expected, absmax, _ = bnb.int8_vectorwise_quant(row)
    np.testing.assert_array_equal(codes, expected.numpy())
    assert scale * 127 == pytest.approx(absmax.item())


def test_int8_of_nothing():
    for tiny in (0.0, 1e-45, 2.6e-43):  # the last one's scale is rounded by a third
        codes, scale = nf4.quantise_int8([tiny, -tiny])
        assert np.abs(nf4.dequantise_int8(codes, scale)).max() <= 2 * tiny and codes[0] == -codes[1]


# --- two codes a byte ---


@quick
@given(arrays(np.uint8, st.integers(1, 99), elements=st.integers(0, 15)))
def test_pack_and_unpack(codes):
    packed = nf4.pack(codes)
    assert packed.dtype == np.uint8 and packed.size == (codes.size + 1) // 2
    np.testing.assert_array_equal(nf4.unpack(packed, codes.size), codes)


def test_the_first_code_is_the_high_half():
    assert nf4.pack([1, 2, 15]).tolist() == [0x12, 0xF0]


# --- beside bitsandbytes ---


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_real_weights(kind, linears):
    """All 36 matrices: with bitsandbytes' levels everything is equal, with ours all but ties."""
    for weight in linears:
        packed, state = theirs(weight, kind)
        expected = nf4.unpack(packed, weight.size)

        codes, absmax = nf4.quantise(weight, their_levels(kind))
        np.testing.assert_array_equal(absmax, state.absmax.numpy())
        np.testing.assert_array_equal(nf4.pack(codes), packed)
        back = bnb.dequantize_4bit(torch.from_numpy(packed)[:, None], state).numpy()
        np.testing.assert_array_equal(nf4.dequantise(codes, absmax, their_levels(kind), weight.shape), back)

        codes, absmax = nf4.quantise(weight, LEVELS[kind])
        assert_only_ties(codes, expected, weight.ravel(), absmax, LEVELS[kind], 64, agree=0.999, within=1e-6)
        ours = nf4.dequantise(nf4.unpack(packed, weight.size), absmax, LEVELS[kind], weight.shape)
        np.testing.assert_allclose(ours, back, rtol=0, atol=2e-7 * absmax.max())


@quick
@given(
    st.sampled_from(["nf4", "fp4"]),
    st.tuples(st.integers(1, 9), st.integers(1, 99)),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.integers(-6, 6),
    st.integers(0, 99),
)
def test_random_weights(kind, shape, dtype, power, seed):
    """Any shape, with short last blocks and odd counts; any dtype that bitsandbytes takes."""
    generator = torch.Generator().manual_seed(seed)
    weight = (torch.randn(shape, generator=generator) * 3.0**power).to(dtype)
    packed, state = theirs(weight, kind)
    values, levels = weight.float().numpy(), their_levels(kind)
    codes, absmax = nf4.quantise(values, levels)
    np.testing.assert_array_equal(absmax, state.absmax.numpy())
    assert nf4.pack(codes).size == packed.size
    expected, full = nf4.unpack(packed, codes.size), codes.size // 64 * 64
    np.testing.assert_array_equal(codes[:full], expected[:full])
    # In a short block bitsandbytes on the CPU divides, so there a tie may go the other way.
    assert_only_ties(codes, expected, values.ravel(), absmax, levels, 64, agree=0, within=1e-6)


def test_ties_go_where_bitsandbytes_puts_them():
    weight = np.random.default_rng(0).integers(-12, 13, (64, 64)).astype(np.float32)
    weight[:, 0] = np.arange(64) % 13 + 12  # absmax from 12 to 24
    packed, _ = theirs(weight, "fp4")
    codes, absmax = nf4.quantise(weight, LEVELS["fp4"])
    levels = np.unique(LEVELS["fp4"]).astype(float)
    midpoints = (levels[1:] + levels[:-1]) / 2
    ties = np.abs((weight / absmax[:, None])[..., None] - midpoints).min(axis=-1) < 1e-7
    assert ties.sum() > 100
    np.testing.assert_array_equal(nf4.pack(codes), packed)


def test_double_quantisation_of_real_weights(linears):
    """bitsandbytes' CPU table has 65,536 places for [-1, 1]: its code is that of a value up to 1 / 65,535 away."""
    agreeing = total = 0
    for weight in linears:
        packed, state = theirs(weight, "nf4", compress_statistics=True)
        _, absmax = nf4.quantise(weight, LEVELS["nf4"])
        codes, absmax2, offset = nf4.double_quantise(absmax)
        assert (codes.dtype, absmax2.dtype, offset.dtype) == (np.uint8, np.float32, np.float32)
        assert offset == pytest.approx(state.offset.item(), rel=1e-6)
        np.testing.assert_allclose(absmax2, state.state2.absmax.numpy(), rtol=2e-6)
        expected = state.absmax.numpy()
        table = LEVELS["dynamic"]
        assert_only_ties(codes, expected, absmax - offset, absmax2, table, 256, agree=0.99, within=2 / 65_535 + 2e-6)
        agreeing, total = agreeing + (codes == expected).sum(), total + codes.size

        back = bnb.dequantize_blockwise(state.absmax, state.state2).numpy() + state.offset.item()
        ours = nf4.double_dequantise(expected, state.state2.absmax.numpy(), state.offset.item())
        np.testing.assert_allclose(ours, back, rtol=1e-6)
        ours = nf4.dequantise(nf4.unpack(packed, weight.size), ours, their_levels("nf4"), weight.shape)
        whole = bnb.dequantize_4bit(torch.from_numpy(packed)[:, None], state).numpy()
        np.testing.assert_allclose(ours, whole, rtol=2e-6)

        kept = nf4.double_dequantise(codes, absmax2, offset)
        assert (np.abs(kept - absmax) <= np.repeat(absmax2, 256)[: codes.size] * 0.00704).all()
    assert agreeing >= 0.995 * total


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 1000])
def test_double_quantisation_of_any_count(count):
    absmax = np.abs(np.random.default_rng(count).normal(3, 1, count)).astype(np.float32)
    codes, absmax2, offset = nf4.double_quantise(absmax)
    assert (codes.size, absmax2.size) == (count, -(-count // 256))
    assert offset == pytest.approx(absmax.mean(dtype=float), rel=1e-6)
    expected, state = bnb.quantize_blockwise(torch.from_numpy(absmax - offset), blocksize=256)
    np.testing.assert_array_equal(absmax2, state.absmax.numpy())
    kept = nf4.double_dequantise(codes, absmax2, offset)
    np.testing.assert_allclose(kept, nf4.double_dequantise(expected.numpy(), absmax2, offset), atol=absmax2.max() / 65)
    np.testing.assert_allclose(kept, absmax, rtol=0, atol=0.00704 * absmax2.max())


def test_equal_constants_are_kept_exactly():
    np.testing.assert_array_equal(nf4.double_dequantise(*nf4.double_quantise(np.full(300, 0.5))), 0.5)


# --- bits ---


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 4096, 64 * 256, 64 * 256 + 1, 99_999, 147_456])
def test_bits_are_the_bytes_that_bitsandbytes_keeps(size, double):
    packed, state = theirs(torch.randn(size), "nf4", compress_statistics=double)
    kept = packed.nbytes + state.absmax.nbytes
    if double:
        kept += state.offset.nbytes + state.state2.absmax.nbytes
    assert nf4.bits_per_parameter(size, double=double) * size == pytest.approx(8 * kept, rel=1e-12)
    codes, absmax = nf4.quantise(np.ones(size), LEVELS["nf4"])
    ours = [absmax] if not double else nf4.double_quantise(absmax)
    assert kept == nf4.pack(codes).nbytes + sum(part.nbytes for part in ours)


def test_bits_as_published():
    """QLoRA, section 3: 0.5 bits of constants, 0.127 with double quantisation; 3 GB less for 65 B parameters."""
    single, double = (nf4.bits_per_parameter(65 * 10**9, double=d) for d in (False, True))
    assert single == 4.5
    assert double == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-8) and round(double - 4, 3) == 0.127
    assert round(single - double, 3) == 0.373 and (single - double) * 65 / 8 == pytest.approx(3, abs=0.05)
    assert nf4.bits_per_parameter(1024, block=1024, bits=8) == 8 + 32 / 1024
    assert nf4.bits_per_parameter(3, block=3, bits=4) == (16 + 32) / 3


# --- errors on N(0, 1) ---


@pytest.fixture(scope="module")
def normals():
    return np.random.default_rng(0).normal(size=2**20).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "block", "published"),
    [
        ("nf4", 64, 0.072792),
        ("nf4", 128, 0.076835),
        ("nf4", 256, 0.080326),
        ("fp4", 64, 0.096545),
        ("fp4", 128, 0.102947),
        ("fp4", 256, 0.108685),
    ],
)
def test_mean_error_as_in_bitsandbytes_tests(kind, block, published, normals):
    back = nf4.dequantise(*nf4.quantise(normals, LEVELS[kind], block), LEVELS[kind], normals.shape, block)
    assert np.abs(back - normals).mean() == pytest.approx(published, abs=5e-4)


def expected_rmse(levels, block: int) -> float:
    """By integration, no samples: over m, the largest magnitude of a block, and over the rest, normal within [-m, m]."""
    normal = NormalDist()
    z = np.linspace(-1, 1, 10_001)
    square = np.abs(z[:, None] - levels.astype(float)).min(axis=1) ** 2
    total = mass = 0.0
    for m in np.linspace(0.5, 6.5, 400):
        inside = normal.cdf(m) - normal.cdf(-m)
        density = block * inside ** (block - 1) * 2 * normal.pdf(m)
        rest = np.exp(-((m * z) ** 2) / 2)
        total += density * m**2 * (square * rest).sum() / rest.sum() * (block - 1) / block
        mass += density
    return (total / mass) ** 0.5


@pytest.mark.parametrize(("kind", "rmse"), [("nf4", 0.0920), ("fp4", 0.1219), ("int4", 0.1076)])
def test_rmse_is_the_expected(kind, rmse, normals):
    expected = expected_rmse(LEVELS[kind], 64)
    back = nf4.dequantise(*nf4.quantise(normals, LEVELS[kind]), LEVELS[kind], normals.shape)
    assert expected == pytest.approx(rmse, abs=5e-5)
    assert np.sqrt(((back - normals) ** 2).mean()) == pytest.approx(expected, abs=5e-4)


# --- mistakes ---


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: nf4.quantise([], LEVELS["nf4"]), r"weight is empty \(shape \(0,\)\); pass at least one"),
        (lambda: nf4.quantise_int8(np.ones((0, 3))), r"weight is empty \(shape \(0, 3\)\)"),
        (lambda: nf4.double_quantise([]), "absmax is empty"),
        (lambda: nf4.quantise([1, np.nan, np.inf], LEVELS["nf4"]), "2 of 3 numbers in the weight are NaN or infinite"),
        (lambda: nf4.quantise([1e39, 1], LEVELS["nf4"]), "1 of 2 numbers in the weight are NaN or infinite in fp32"),
        (lambda: nf4.quantise_int8([np.nan]), "1 of 1 numbers in the weight are NaN"),
        (lambda: nf4.double_quantise([1, -np.inf]), "1 of 2 numbers in the absmax are NaN"),
        (lambda: nf4.quantise([1], LEVELS["nf4"], block=0), "block=0, but block must be a whole number of at least 1"),
        (lambda: nf4.quantise([1], LEVELS["nf4"], block=64.0), "block=64.0, but"),
        (lambda: nf4.double_quantise([1], block=-1), "block=-1, but"),
        (lambda: nf4.dequantise([0], [1], LEVELS["nf4"], (1,), block=True), "block=True, but"),
        (lambda: nf4.bits_per_parameter(0), "size=0, but"),
        (lambda: nf4.bits_per_parameter(8, bits=0), "bits=0, but"),
        (lambda: nf4.dequantise([0, 16], [1], LEVELS["nf4"], (2,)), "whole numbers from 0 to 15; .* from 0 to 16"),
        (lambda: nf4.dequantise([14, 15], [1], LEVELS["int4"], (2,)), "whole numbers from 0 to 14; .* from 14 to 15"),
        (lambda: nf4.pack([3, -1]), "whole numbers from 0 to 15; .* from -1 to 3"),
        (lambda: nf4.pack([0.5]), "whole numbers from 0 to 15; given: float64"),
        (lambda: nf4.pack([]), "whole numbers from 0 to 15; .* none"),
        (lambda: nf4.unpack([256], 2), "whole numbers from 0 to 255"),
        (lambda: nf4.dequantise([0] * 9, [1], LEVELS["nf4"], (2, 4)), r"9 codes and 1 absmax .* shape \(2, 4\)"),
        (lambda: nf4.dequantise([0] * 9, [1], LEVELS["nf4"], (9,), block=8), "9 codes and 1 absmax .* blocks of 8"),
        (lambda: nf4.unpack([1, 2], 5), "count=5, but 2 bytes hold 3 or 4 codes"),
        (lambda: nf4.unpack([1, 2], 2), "count=2, but 2 bytes hold 3 or 4 codes"),
        (lambda: nf4.unpack([1, 2], 0), "count=0, but count must be"),
    ],
)
def test_mistakes(call, told):
    with pytest.raises(ValueError, match=told):
        call()
