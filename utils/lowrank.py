"""The maths of lesson 01 in NumPy: rank, the best low-rank approximation, LoRA's update and its gradients.

Naming is the paper's: h = W x + (alpha / r) B A x, with W (d_out, d_in), B (d_out, r), A (r, d_in).
"""

import numpy as np


def numerical_rank(M, rtol: float | None = None) -> int:
    """How many singular values of `M` exceed rtol times the largest; rtol defaults to max(M.shape) * eps of M's dtype."""
    M = np.asarray(M)
    s = np.linalg.svd(M.astype(float), compute_uv=False)
    if rtol is None:  # fp32 entries are rounded to fp32, so what rounding adds must not count as rank
        rtol = max(M.shape) * np.finfo(M.dtype if np.issubdtype(M.dtype, np.floating) else float).eps
    return int((s > rtol * s[0]).sum()) if s.size and s[0] > 0 else 0


def best_rank_r(M, r: int):
    """The rank-r matrix nearest to `M` (Eckart & Young 1936): its SVD, cut after r terms. Returns an array like `M`."""
    _check_rank(r, np.shape(M))
    u, s, vt = np.linalg.svd(M, full_matrices=False)
    return (u[:, :r] * s[:r]) @ vt[:r]


def tail_error(singular_values, r: int) -> float:
    """Frobenius error of the best rank-r approximation, as a share of the norm: the spectrum's tail after r."""
    s2 = np.asarray(singular_values, dtype=float) ** 2
    return float(np.sqrt(s2[r:].sum() / s2.sum()))


def delta(B, A, alpha: float):
    """LoRA's update alpha / r * B A, (d_out, d_in), for B (d_out, r) and A (r, d_in)."""
    return alpha / A.shape[0] * B @ A


def gradients(B, A, alpha: float, G):
    """(dL/dB, dL/dA) from G = dL/d(update), (d_out, d_in): by the product rule, each factor waits for the other."""
    scaling = alpha / A.shape[0]
    return scaling * G @ A.T, scaling * B.T @ G


def lora_parameters(d_out: int, d_in: int, r: int) -> int:
    """Entries of B and A together: r (d_out + d_in)."""
    _check_rank(r, (d_out, d_in))
    return r * (d_out + d_in)


def break_even_rank(d_out: int, d_in: int) -> float:
    """The rank at which B and A hold as many numbers as the matrix itself: d_out d_in / (d_out + d_in)."""
    return d_out * d_in / (d_out + d_in)


def _check_rank(r, shape) -> None:
    if not isinstance(r, (int, np.integer)) or isinstance(r, bool) or not 1 <= r <= min(shape):
        raise ValueError(
            f"r={r!r}, but the rank must be a whole number from 1 to {min(shape)} for a {shape[0]} x {shape[1]} matrix."
        )
