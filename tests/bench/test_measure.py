import pytest

from groundup.bench.measure import Rates, interleave


def test_median_and_interquartile_range_by_hand():
    rates = Rates((1.0, 2.0, 3.0, 4.0, 100.0))
    assert rates.median == 3.0
    assert rates.spread == 2.0  # from 2 to 4: one wild value changes nothing
    assert Rates((7.0,)).spread == 0.0


@pytest.mark.parametrize("rounds", [1, 3, 4])
def test_every_program_has_every_turn(rounds):
    order = []

    def program(name):
        return lambda: order.append(name) or float(len(order))

    rates = interleave({n: program(n) for n in "abc"}, seconds=0.0, min_rounds=rounds, pause=0.0)
    assert all(len(r.values) == rounds for r in rates.values())
    assert "".join(order) == "abcbcacababc"[: 3 * rounds]
