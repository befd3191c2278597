"""The alpha-beta model on two levels, by hand."""

import pytest

from groundup.accounting.communication import Traffic
from groundup.planning.links import Link, Network, together

NETWORK = Network(Link(1e-5, 4e9), 8, Link(1e-4, 1e9))


def seconds(operation, ranks, size, on_a_machine, network=NETWORK):
    return network.seconds(Traffic("data", operation, ranks, 1, size), on_a_machine)


def test_within_a_machine():
    assert seconds("all-reduce", 4, 8e9, 4) == pytest.approx(6e-5 + 12e9 / 4e9)
    assert seconds("send", 4, 8e9, 4) == pytest.approx(1e-5 + 2.0)


def test_a_ring_over_machines_uses_every_ranks_card():
    # 16 ranks on two machines: 2 of 16 hops leave a machine, and 8 rings together reach 8 GB/s, more than inside
    assert seconds("all-gather", 16, 16e9, 8) == pytest.approx(15 * (2e-4 + 14e-5) / 16 + 15e9 / 4e9)
    # one rank of a machine: every hop leaves it
    assert seconds("all-gather", 16, 16e9, 1) == pytest.approx(15 * 1e-4 + 15e9 / 1e9)
    assert seconds("all-gather", 4, 4e9, 2) == pytest.approx(3 * (2e-4 + 2e-5) / 4 + 3e9 / 2e9)


def test_a_send_to_another_machine_has_one_card():
    assert seconds("send", 2, 1e9, 1) == pytest.approx(1e-4 + 1.0)


def test_what_was_measured_apart_is_taken():
    network = Network(Link(1e-5, 4e9), 8, None, {("all-gather", 4): Link(0.0, 1e9)})
    assert seconds("all-gather", 4, 4e9, 4, network) == pytest.approx(3.0)
    assert seconds("all-gather", 2, 4e9, 2, network) == pytest.approx(1e-5 + 0.5)


def test_between_machines_nothing_is_made_up():
    with pytest.raises(ValueError, match="16 ranks along data span machines of 8: say what lies between them"):
        seconds("all-reduce", 16, 1, 8, Network(Link(1e-5, 4e9), 8))


def test_machines_are_filled_from_the_innermost_axis():
    assert together([(8, True), (4, False)], 8) == 8
    assert together([(8, False), (4, True)], 8) == 1
    assert together([(2, False), (4, True), (16, False)], 8) == 4
    assert together([(2, True), (2, False), (8, True)], 8) == 4


def test_a_link_has_a_rate():
    with pytest.raises(ValueError, match="expected a time and a rate"):
        Link(1e-5, 0.0)
