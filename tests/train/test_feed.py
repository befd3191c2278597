"""Batches for the trainer: groups, what was handed back, and the place to go on from."""

import json
import time

import pytest
import torch

from groundup.train.feed import Feed, count_tokens, split
from tests.train.small import Batches, batch

CPU = torch.device("cpu")


def numbers(group):
    """Which of `small.batch`'s batches these are, by their tokens."""
    known = {batch(i)["tokens"].numpy().tobytes(): i for i in range(12)}
    return [known[b["tokens"].numpy().tobytes()] for b in group]


def test_groups_in_order_until_the_source_ends():
    feed = Feed(Batches(length=5), CPU)
    assert numbers(feed.take(2)) == [0, 1] and numbers(feed.take(2)) == [2, 3]
    assert feed.take(2) is None  # one batch alone is no group
    assert feed.taken == 4


def test_a_source_with_a_cursor_goes_on_by_it():
    feed = Feed(Batches(left_out=[1]), CPU)
    assert numbers(feed.take(2)) == [0, 2]
    state = json.loads(json.dumps(feed.state()))
    assert state == {"taken": 2, "cursor": {"at": 3}}
    other = Feed(Batches(), CPU)
    other.give_back([[batch(9)]])
    other.load_state(state)
    assert not other.owes and numbers(other.take(1)) == [3] and other.taken == 3


def test_there_is_no_state_while_a_batch_is_owed():
    feed = Feed(Batches(), CPU)
    group = feed.take(1)
    feed.give_back([group])
    with pytest.raises(AssertionError, match="handed back"):
        feed.state()
    assert feed.take(1) is group and feed.state()["taken"] == 1


def test_what_is_given_back_twice_comes_in_its_order():
    feed = Feed(Batches(), CPU)
    first, second, third = (feed.take(1) for _ in range(3))
    feed.give_back([third])
    feed.give_back([first, second])
    assert [numbers(feed.take(1)) for _ in range(4)] == [[0], [1], [2], [3]]


def test_epochs_are_known_where_the_source_knows_them():
    source = Batches()
    assert Feed(source, CPU).epochs is None
    source.epochs_seen = 1.5
    assert Feed(source, CPU).epochs == 1.5


def test_an_uneven_cut_loses_no_row():
    whole = {"tokens": torch.arange(10).view(5, 2), "mask": torch.ones(5, 2)}
    for parts in range(1, 8):
        micro = split(whole, parts)
        assert len(micro) == min(parts, 5)
        assert torch.equal(torch.cat([m["tokens"] for m in micro]), whole["tokens"])
        assert all(len(m["mask"]) == len(m["tokens"]) for m in micro)


def test_only_rows_of_ids_count_as_tokens():
    ids = torch.zeros(2, 5, dtype=torch.long)
    beside = {"mask": ids, "segments": ids, "chosen_positions": ids, "rewards": torch.ones(2, 5), "flags": ids.bool()}
    assert count_tokens([{"tokens": ids, "chosen": ids, "lengths": torch.zeros(2, dtype=torch.long), **beside}]) == 16
    assert count_tokens([]) == 0


def test_the_time_that_the_source_takes_is_counted():
    def slow():
        for number in range(2):
            time.sleep(0.05)
            yield batch(number)

    feed = Feed(slow(), CPU)
    assert feed.waited == 0.0
    feed.take(2)
    assert feed.waited >= 0.1


def test_a_wrong_id_is_named_on_its_way_to_an_accelerator():
    """Which, if it got there, would end the process without a word about where it was."""
    bad = batch(1)["tokens"].clone()
    bad[1, 4] = 99
    feed = Feed([batch(0), {"tokens": bad}], torch.device("meta"), {"tokens": 31, "source": 7})
    assert feed.take(1)[0]["tokens"].is_meta
    with pytest.raises(ValueError, match=r"row 1, position 4: token id 99 .* 0\.\.30"):
        feed.take(1)
