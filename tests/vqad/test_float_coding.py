import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from vqad_scenes import same_bits

from radcomp_plugins.core import entropy
from radcomp_plugins.errors import InputError
from radcomp_plugins.vqad.float_coding import decode_floats, encode_floats, round_mantissa

# Every finite word, of either sign.
halves = hnp.arrays(
    np.uint16, hnp.array_shapes(min_dims=1, max_dims=2, max_side=9), elements=st.integers(0, 2 * 0x7C00 - 1)
).map(lambda words: (words % 0x7C00 | (words >= 0x7C00).astype(np.uint16) << 15).astype(np.uint16).view(np.float16))


@given(st.lists(halves, min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_round_trip_bit_for_bit(arrays) -> None:
    decoded = decode_floats(encode_floats(arrays), [array.shape for array in arrays], "x")
    assert all(same_bits(mine, theirs) for mine, theirs in zip(arrays, decoded, strict=True))


def test_what_is_not_finite_is_refused() -> None:
    array = np.full((40, 3), np.inf, np.float16)
    with pytest.raises(InputError, match="^x: a number is not finite"):
        decode_floats(encode_floats([array]), [array.shape], "x")


def test_weights_cost_less_than_two_bytes_and_rounded_ones_much_less() -> None:
    weights = (0.1 * np.random.default_rng(0).normal(size=(128, 43))).astype(np.float16)
    full, rounded = len(encode_floats([weights])), len(encode_floats([round_mantissa(weights, 6)]))
    assert full < 0.95 * 2 * weights.size
    assert rounded < 0.68 * 2 * weights.size


@given(st.floats(width=16, allow_nan=False, allow_infinity=False), st.integers(0, 10))
@settings(deadline=None)
def test_rounding_is_to_the_nearest_with_so_few_digits(value: float, bits: int) -> None:
    half = np.array([value], np.float16)
    rounded = round_mantissa(half, bits)
    assert np.isfinite(rounded).all()
    word = int(rounded.view(np.uint16)[0])
    assert word & ((1 << (10 - bits)) - 1) == 0 and np.signbit(rounded) == np.signbit(half)
    if bits == 10:
        assert same_bits(half, rounded)
    # No other number with so few digits is nearer.
    step = 1 << (10 - bits)
    for other in (word - step, word + step):
        if (other & 0x7FFF) < 0x7C00 and other >> 15 == word >> 15 and other >= 0:
            nearby = float(np.array([other], np.uint16).view(np.float16)[0])
            assert abs(float(rounded[0]) - value) <= abs(nearby - value)


def test_both_bytes_are_coded_apart() -> None:
    # A coder that mixed them up would spend the same on either.
    array = np.array([1.0, 1.5] * 400, np.float16)
    words = array.view(np.uint16).astype(int)
    plain = entropy.encode(np.stack([words >> 8, words & 255], 1).ravel(), entropy.Contexts(8, 1600))
    assert len(encode_floats([array])) < len(plain)
