"""What the benchmarks do with what they measured; that they run is not tested here."""

import pytest

from benchmarks import attention, measure


def test_a_ratio_is_that_of_neighbours_in_time():
    """The machine became three times slower in the second round; the ratio is 2 throughout."""
    measured = {"theirs": [2.0, 6.0, 2.2], "ours": [1.0, 3.0, 1.1]}
    text = measure.table("step", measured, "theirs")
    assert "2.00 (2.00 to 2.00)" in text
    assert "1100.0 (1000.0 to 3000.0)" in text


def test_everything_takes_its_turn_in_every_round():
    calls = []
    names = ("a", "b")
    functions = {name: (lambda name=name: calls.append(name)) for name in names}
    measured = measure.in_turns(functions, rounds=2)
    assert "".join(calls) == "ab" + "abab"  # each once before
    assert {name: len(seconds) for name, seconds in measured.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_growth_is_the_exponent_of_a_power(exponent):
    tokens = [64, 144, 256]
    assert attention.growth(tokens, [3e-6 * n**exponent for n in tokens]) == pytest.approx(exponent)
