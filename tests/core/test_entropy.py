from decimal import Decimal, getcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radcomp_plugins.core import entropy
from radcomp_plugins.core.entropy import Contexts, Model, decode, encode


def order0(symbols: np.ndarray) -> float:
    """Bits of an ideal coder that knows how often each symbol comes."""
    share = np.bincount(symbols) / len(symbols)
    return float(-(share[share > 0] * np.log2(share[share > 0])).sum() * len(symbols))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_round_trip_with_any_contexts(draw) -> None:
    bits = draw.draw(st.integers(1, 8))
    symbols = np.array(draw.draw(st.lists(st.integers(0, 2**bits - 1), max_size=60)), np.int64)
    n = len(symbols)
    rng = np.random.default_rng(draw.draw(st.integers(0, 99)))
    sides = [(rng.integers(0, size, n), size) for size in draw.draw(st.lists(st.integers(1, 9), max_size=2))]
    places = [rng.integers(-1, np.maximum(np.arange(n), 0), n) if n else np.empty(0, int) for _ in range(2)]
    causal = [(place, rng.integers(0, 5, 2**bits + 1)) for place in places]
    count = len(sides) + 2
    joint = [(0, count - 1), (count - 2, 0, count - 1)]
    contexts = Contexts(bits, n, sides, causal, joint)
    assert np.array_equal(decode(encode(symbols, contexts), contexts), symbols)


def test_extremes_round_trip() -> None:
    for symbols in (
        np.zeros(5000, int),
        np.full(5000, 255),
        np.arange(5000) % 2 * 255,
        np.r_[np.zeros(4999, int), 255],
    ):
        contexts = Contexts(8, len(symbols))
        assert np.array_equal(decode(encode(symbols, contexts), contexts), symbols)


def test_cost_is_near_the_entropy() -> None:
    rng = np.random.default_rng(0)
    for share in (0.02, 0.3, 0.5):
        symbols = rng.geometric(share, 20_000).clip(1, 64) - 1
        size = 8 * len(encode(symbols, Contexts(6, len(symbols))))
        assert order0(symbols) - 64 < size < 1.03 * order0(symbols)
    # Always ready for something new, the coder pays a little for what stays the same.
    noise = rng.integers(0, 64, 20_000)
    assert 8 * len(encode(noise, Contexts(6, len(noise)))) < 1.03 * 6 * len(noise)


def test_each_kind_of_context_is_used() -> None:
    rng = np.random.default_rng(1)
    n = 8000
    known, other = rng.integers(0, 16, n), rng.integers(0, 16, n)
    before = np.arange(n) - 2
    before[:2] = -1
    told = known.copy()
    assert len(encode(told, Contexts(4, n, [(known, 16)]))) < 0.1 * n / 2
    repeated = rng.integers(0, 16, n)
    repeated[2:] = 0
    for i in range(2, n):
        repeated[i] = repeated[i - 2] if i % 50 else rng.integers(16)
    assert len(encode(repeated, Contexts(4, n, causal=[(before, np.arange(17))]))) < 0.2 * n / 2
    # Neither alone says anything.
    mixed = known ^ other
    assert len(encode(mixed, Contexts(4, n, [(known, 16), (other, 16)]))) > 0.95 * n / 2
    assert len(encode(mixed, Contexts(4, n, [(known, 16), (other, 16)], joint=[(0, 1)]))) < 0.5 * n / 2


def test_a_kept_model_goes_on_where_it_was() -> None:
    rng = np.random.default_rng(2)
    parts = [rng.geometric(0.3, 300).clip(1, 64) - 1 for _ in range(4)]
    contexts = Contexts(6, 300)
    coder, decoder = Model(contexts), Model(contexts)
    coded = [encode(part, contexts, coder) for part in parts]
    for part, data in zip(parts, coded, strict=True):
        assert np.array_equal(decode(data, contexts, decoder), part)
    assert len(coded[3]) < len(encode(parts[3], contexts))
    with pytest.raises(ValueError, match="a model of contexts"):
        encode(parts[0], Contexts(6, 300, [(parts[0], 64)]), coder)


def test_any_bytes_decode_to_something() -> None:
    rng = np.random.default_rng(3)
    contexts = Contexts(5, 400, causal=[(np.arange(400) - 1, np.arange(33))])
    for size in (0, 1, 3, 4, 50, 4000):
        symbols = decode(rng.bytes(size), contexts)
        assert symbols.min() >= 0 and symbols.max() < 32


def test_what_changes_is_learned_anew() -> None:
    """Within some hundred symbols."""
    symbols = np.r_[np.full(20_000, 5), np.full(20_000, 10)]
    assert len(encode(symbols, Contexts(4, len(symbols)))) - len(encode(symbols[:20_000], Contexts(4, 20_000))) < 100


def test_what_is_certain_moves_nothing() -> None:
    """Else odds would leave their range in long files."""
    contexts = Contexts(1, 2**20)
    model = Model(contexts)
    encode(np.zeros(2**20, int), contexts, model)
    assert -(2**31) // 100 < int(model.odds[1]) < 0


def test_tables_are_the_logistic_function() -> None:
    getcontext().prec = 40
    for x in (-2047, -300, -1, 0, 1, 77, 1500, 2047):
        power = (Decimal(x) / 256).exp()
        exact = int((65536 * power / (1 + power)).to_integral_value())
        assert entropy.SQUASH[x + 2048] == min(max(exact, 24), 65536 - 24)
    for inputs in (1, 3, 14):
        steps = entropy.step_sizes(inputs)
        assert (np.diff(steps) <= 0).all() and steps[-1] == int(4096 * 0.4 / (inputs + 2))
        assert 65536 * int(steps[0]) < 2**31


def test_the_bytes_stay_what_they_are() -> None:
    """Files that were written stay readable: this pins the format."""
    symbols = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3, 3, 8, 3, 2, 7, 9])
    contexts = Contexts(4, 31, [(np.arange(31) % 3, 3)], [(np.arange(31) - 1, np.arange(17))], [(0, 1)])
    assert encode(symbols, contexts).hex() == GOLDEN


GOLDEN = "ce8dfa545de8e40ceeb07254552a"


def test_contexts_that_lie_are_refused() -> None:
    n = 4
    with pytest.raises(ValueError, match="9 bits"):
        Contexts(9, n)
    with pytest.raises(ValueError, match="below 3"):
        Contexts(4, n, [(np.array([0, 1, 2, 3]), 3)])
    with pytest.raises(ValueError, match="looks ahead"):
        Contexts(4, n, causal=[(np.array([-1, 1, 0, 0]), np.arange(17))])
    with pytest.raises(ValueError, match="expected 17"):
        Contexts(4, n, causal=[(np.array([-1, 0, 0, 0]), np.arange(16))])
    with pytest.raises(ValueError, match="counters at most"):
        Contexts(8, n, [(np.zeros(n, int), 2**17)])
    with pytest.raises(ValueError, match="below 16"):
        encode(np.array([16, 0, 0, 0]), Contexts(4, n))
