"""What is sent, by hand: small numbers that can be added up on paper."""

import pytest

from groundup.accounting import communication
from groundup.accounting.communication import Traffic, hops, wire_share


def sent(traffic: list[Traffic]) -> float:
    return sum(each.sent for each in traffic)


def messages(traffic: list[Traffic]) -> float:
    return sum(each.messages for each in traffic)


def test_a_ring_sends_all_but_one_part_of_n():
    for ranks in (2, 3, 8):
        assert wire_share("all-reduce", ranks) == 2 * wire_share("all-gather", ranks) == 2 * (ranks - 1) / ranks
        assert hops("all-reduce", ranks) == 2 * hops("reduce-scatter", ranks) == 2 * (ranks - 1)
    assert wire_share("send", 8) == hops("send", 8) == 1


def test_data_parallelism_sends_each_gradient_nearly_twice():
    # 1000 parameters of 4 bytes on 4 ranks: 2 x 3/4 x 4000, in 2 (4 - 1) messages for each of 5 buckets
    traffic = communication.data_parallel(4000, 4, buckets=5)
    assert (sent(traffic), messages(traffic)) == (6000, 30)


def test_zero_sends_as_much_as_data_parallelism():
    assert sent(communication.zero(4000, 4000, 4)) == sent(communication.data_parallel(4000, 4))


def test_shards_are_gathered_twice_and_reduced_once_in_every_pass():
    # bf16 parameters and fp32 gradients of 1000: (2 x 2000 + 4000) x 7/8 in each of 3 passes
    traffic = communication.sharded(2000, 4000, ranks=8, units=5, passes=3)
    assert sent(traffic) == pytest.approx(3 * 8000 * 7 / 8)
    assert messages(traffic) == 3 * 5 * 3 * 7


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize(("recompute", "branches"), [(False, 4), (True, 5)])
def test_tensor_parallelism_sums_activations_for_each_branch(sequence, recompute, branches):
    traffic = communication.tensor_parallel(100, 4, 6, 2, recompute=recompute, sequence=sequence)
    once = 2 * 3 / 4 * 100
    gathered_once_more = sequence * recompute * 6 * 2 * 0.75 * 100
    assert sent(traffic) == pytest.approx(6 * 2 * branches * once + gathered_once_more)


def test_a_pipeline_sends_activations_on_and_gradients_back():
    each = [sent(communication.pipeline(100, 4, rank, microbatches=8)) for rank in range(4)]
    assert each == [800, 1600, 1600, 800]
    # With 2 chunks the last rank's first chunk sends on, to the first rank's second, which sends back.
    each = [sent(communication.pipeline(100, 4, rank, microbatches=8, chunks=2)) for rank in range(4)]
    assert each == [2400, 3200, 3200, 2400]


def test_keys_and_values_go_round_and_their_gradients_come_back():
    ring = communication.context_ring(100, 200, 4, layers=6, passes=2)
    assert sent(ring) == 3 * 6 * 2 * (2 * 100 + 200)
    gather = communication.context_gather(100, 4, layers=6, passes=2)
    assert sent(gather) == 3 * 6 * 2 * (100 + 100)


def test_rows_travel_to_their_experts_and_back_both_ways():
    assert sent(communication.expert_parallel(100, 4, layers=6, passes=2)) == 4 * 0.75 * 100 * 6 * 2


def test_a_rank_alone_sends_nothing():
    alone = [
        communication.data_parallel(1, 1), communication.zero(1, 1, 1), communication.sharded(1, 1, 1, 1, 1),
        communication.tensor_parallel(1, 1, 1, 1), communication.pipeline(1, 1, 0, 1),
        communication.context_ring(1, 1, 1, 1, 1), communication.context_gather(1, 1, 1, 1),
        communication.expert_parallel(1, 1, 1, 1),
    ]  # fmt: skip
    assert alone == [[]] * 8
