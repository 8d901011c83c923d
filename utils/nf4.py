"""The maths of lesson 05 in NumPy: weights rounded to a few levels, block by block; NF4 and double quantisation.

Dettmers et al. 2023 (QLoRA), https://arxiv.org/abs/2305.14314; the layout is bitsandbytes'. A *level* is a number in
[-1, 1], its *code* is its place in the list of levels, and *absmax*, the largest magnitude in a block, stretches the
levels over that block. Weights and constants are fp32.
"""

import math
from statistics import NormalDist

import numpy as np

# --- levels: which numbers a code can stand for ---


def nf4_levels():
    """NF4's 16 levels, sorted: quantiles of the normal curve, 8 above zero and 7 below, and zero itself, over the largest.

    Equal steps in probability, so levels lie closest where weights do. bitsandbytes' table to within 1.2e-7: its steps
    were rounded to fp32 on the way.
    """
    outermost = 0.9677083  # 1 - (1/30 + 1/32) / 2: half a step in, were there 15 steps or 16; at 1 lies infinity
    quantile = NormalDist().inv_cdf
    above = [quantile(p) for p in np.linspace(outermost, 0.5, 9)[:-1]]
    below = [-quantile(p) for p in np.linspace(outermost, 0.5, 8)[:-1]]
    return np.sort([*below, 0, *above]).astype(np.float32) / np.float32(above[0])


def fp4_levels():
    """FP4's 16 levels in the order of their bits, one sign, two exponent, one mantissa: (1 + m/2) * 2**(4 - e), over 12.

    Exponent 0 is the exception: 0 and bitsandbytes' 1/192. There are two zeros, so 15 different levels.
    """
    magnitudes = [0, 1 / 16] + [(1 + m / 2) * 2 ** (4 - e) for e in (1, 2, 3) for m in (0, 1)]
    return np.array(magnitudes + [-x for x in magnitudes], np.float32) / 12


def int4_levels():
    """Fifteen equal steps, -7/7 to 7/7. The sixteenth code would be -8/7: no value lies there once absmax is 1."""
    return np.arange(-7, 8, dtype=np.float32) / 7


def dynamic_levels():
    """bitsandbytes' 8-bit levels, sorted: seven decades up to 1, each cut into twice as many equal slices as the one below.

    The middles of the slices (1 + 2 + ... + 64 = 127) with both signs, 0 and 1. Dettmers 2015, arXiv:1511.04561.
    """
    middles = []
    for i in range(7):
        edges = np.linspace(0.1, 1, 2**i + 1)
        middles.extend(10.0 ** (i - 6) * (edges[:-1] + edges[1:]) / 2)
    return np.sort([*np.negative(middles), 0, *middles, 1]).astype(np.float32)


# --- from weights to codes and back ---


def quantise_int8(weight):
    """(int8 codes like `weight`, scale): one scale, absmax / 127, for the whole tensor; halves go to the even code."""
    weight = _numbers(weight)
    scale = np.abs(weight).max() / np.float32(127)
    return np.rint(weight / (scale or 1)).clip(-127, 127).astype(np.int8), scale


def dequantise_int8(codes, scale):
    """What `quantise_int8` kept of the weight: codes * scale, fp32."""
    return np.asarray(codes, np.float32) * np.float32(scale)


def quantise(weight, levels, block: int = 64):
    """(uint8 codes, one for each value; fp32 absmax, one for each block): value / absmax goes to the nearest level.

    Blocks are `block` values in reading order, across rows; the last may be shorter. Halfway between two levels, the
    lower wins. A block of zeros has absmax 0 and comes back as zeros. Raises ValueError if empty, NaN or infinite.
    """
    _check_whole("block", block)
    values, levels = _numbers(weight).ravel(), np.asarray(levels, np.float32)
    blocks = np.pad(values, (0, -values.size % block)).reshape(-1, block)  # zeros change no absmax
    absmax = np.abs(blocks).max(axis=1)
    # Times the reciprocal, as in bitsandbytes: a quotient may round to the other side of a midpoint. The floor is for zeros.
    scaled = (blocks * (1 / np.maximum(absmax, 1e-38))[:, None]).ravel()[: values.size]
    order = np.argsort(levels, kind="stable")  # FP4's are in the order of their bits
    midpoints = (levels[order][:-1] + levels[order][1:]) / 2
    return order[np.searchsorted(midpoints, scaled)].astype(np.uint8), absmax


def dequantise(codes, absmax, levels, shape, block: int = 64):
    """fp32 array of `shape`: each code's level times its block's absmax. ValueError if the counts do not fit together."""
    _check_whole("block", block)
    codes, absmax = _codes(codes, len(levels)), np.asarray(absmax, np.float32)
    if codes.size != np.prod(shape) or absmax.shape != (math.ceil(codes.size / block),):
        raise ValueError(
            f"{codes.size} codes and {absmax.size} absmax values do not make a weight of shape {shape} in blocks of {block}; "
            "pass what quantise() returned, with the block size it was given and the shape of its weight."
        )
    return (np.asarray(levels, np.float32)[codes] * np.repeat(absmax, block)[: codes.size]).reshape(shape)


def pack(codes):
    """Two 4-bit codes a byte, the first in the high half; an odd count is filled up with code 0. Returns flat uint8."""
    codes = _codes(codes, 16)
    first, second = codes[::2], np.pad(codes, (0, codes.size % 2))[1::2]
    return first << 4 | second


def unpack(packed, count: int):
    """The `count` codes that `pack` put into `packed`. ValueError if that many do not take that many bytes."""
    packed = _codes(packed, 256)
    _check_whole("count", count)
    if packed.size != math.ceil(count / 2):
        raise ValueError(
            f"count={count}, but {packed.size} bytes hold {2 * packed.size - 1} or {2 * packed.size} codes; pass the "
            "number of codes that were packed."
        )
    return np.stack([packed >> 4, packed & 15], axis=1).ravel()[:count]


# --- the constants, quantised too ---


def double_quantise(absmax, block: int = 256):
    """(uint8 codes, their fp32 absmax for each `block`, offset): `absmax` less its mean, to the nearest dynamic level.

    QLoRA's double quantisation: absmax is never negative, so the mean is taken off to use both signs. bitsandbytes on the
    CPU looks codes up in a table of 65,536 places; where it differs, ours is the nearer level.
    """
    absmax = _numbers(absmax, "absmax")
    offset = absmax.mean()
    return *quantise(absmax - offset, dynamic_levels(), block), offset


def double_dequantise(codes, absmax, offset, block: int = 256):
    """What `double_quantise` kept of the constants, fp32."""
    return dequantise(codes, absmax, dynamic_levels(), np.shape(codes), block) + np.float32(offset)


def bits_per_parameter(size: int, block: int = 64, double: bool = False, bits: int = 4) -> float:
    """Bits stored for each of `size` weights: codes in whole bytes, an fp32 absmax a block; or with `double` 8 bits a block,
    fp32 for 256 of those, and the fp32 offset. Tables of levels, the same for every weight, are left out.
    """
    for name, value in dict(size=size, block=block, bits=bits).items():
        _check_whole(name, value)
    blocks = math.ceil(size / block)
    constants = 8 * blocks + 32 * math.ceil(blocks / 256) + 32 if double else 32 * blocks
    return (8 * math.ceil(size * bits / 8) + constants) / size


def _numbers(given, name: str = "weight"):
    with np.errstate(over="ignore"):  # what is too large for fp32 becomes infinite, and is refused
        array = np.asarray(given, np.float32)
    if not array.size:
        raise ValueError(f"The {name} is empty (shape {array.shape}); pass at least one number.")
    if bad := int((~np.isfinite(array)).sum()):
        raise ValueError(
            f"{bad} of {array.size} numbers in the {name} are NaN or infinite in fp32; one would spoil its whole block. "
            "Repair or replace them first."
        )
    return array


def _codes(given, count: int):
    codes = np.asarray(given)
    if not codes.size or codes.dtype.kind not in "iu" or codes.min() < 0 or codes.max() >= count:
        told = f"from {codes.min()} to {codes.max()}" if codes.size else "none"
        raise ValueError(
            f"Codes must be whole numbers from 0 to {count - 1}; given: {codes.dtype}, {told}. "
            "Pass what quantise() or pack() returned."
        )
    return codes.astype(np.uint8).ravel()


def _check_whole(name: str, value) -> None:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}, but {name} must be a whole number of at least 1.")
