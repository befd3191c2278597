"""A place in the stream is one integer, and its saved form is that of every checkpoint there is."""

import json

import numpy as np
import pytest

from groundup.data import Conversations, Loader
from groundup.data.cursor import Cursor
from groundup.data.order import Order


class Rows(Cursor):
    """Gives the numbers of its samples."""

    def __init__(self, num_rows=5, batch_size=2, context_length=4, seed=0, rank=0, world_size=1):
        super().__init__(batch_size, context_length, seed, rank, world_size)
        self.order, self._data = Order(num_rows, seed), f"{num_rows} rows"

    def __next__(self):
        samples = self._own_samples(self._samples)
        self._samples += self.batch_size
        return samples


def test_by_hand():
    source = Rows(num_rows=5, batch_size=2, context_length=4)
    assert source.tokens_per_batch == 8 and (source.epoch, source.epochs_seen) == (0, 0.0)
    assert [next(source).tolist() for _ in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert (source.epoch, source.epochs_seen) == (1, 6 / 5)
    assert iter(source) is source


def test_ranks_share_a_batch_and_stand_at_the_same_place():
    ranks = [Rows(batch_size=6, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(2):
        parts = [next(source) for source in ranks]
    assert [part.tolist() for part in parts] == [[6, 9], [7, 10], [8, 11]]
    assert len({json.dumps(source.state()) for source in ranks}) == 1


@pytest.mark.parametrize("world_size", [1, 2])
def test_going_on_elsewhere(world_size):
    source = Rows(batch_size=4)
    next(source)
    other = [Rows(batch_size=4, rank=rank, world_size=world_size) for rank in range(world_size)]
    for each in other:
        each.load_state(json.loads(json.dumps(source.state())))
    assert sorted(np.concatenate([next(each) for each in other])) == [4, 5, 6, 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_length": 0}, "context_length: 0"),
        ({"batch_size": 3, "world_size": 2}, "batch_size 3 .* a multiple of 2"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"rank": 2, "batch_size": 4, "world_size": 2}, "rank 2 of 2"),
        ({"world_size": 0}, "rank 0 of 0"),
    ],
)
def test_what_cannot_be_shared_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Rows(**options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "cannot resume: seed was 1 and is now 0"),
        ({"context_length": 9}, "context_length was 9 and is now 4"),
        ({"data": "others"}, "data was 'others' and is now '5 rows'"),
        ({"samples": -1}, "not the state of this source"),
        ({"samples": 1.5}, "not the state of this source"),
        ({"more": 1}, "not the state of this source"),
    ],
)
def test_the_state_of_another_stream_is_refused_and_changes_nothing(changes, message):
    source = Rows()
    next(source)
    with pytest.raises(ValueError, match=message):
        source.load_state(source.state() | changes)
    assert source.state()["samples"] == 2


def test_both_sources_save_what_they_always_saved(make_shards):
    shards = make_shards(100)
    loader = Loader(shards, 2, 8, seed=3)
    examples = Conversations([([1, 2, 3], [0, 1, 1])], batch_size=2, context_length=4, pad_id=0, seed=3)
    for source, context, data in ((loader, 8, shards.fingerprint), (examples, 4, examples.state()["data"])):
        next(source)
        assert source.state() == {"samples": 2, "seed": 3, "context_length": context, "data": data}
        # A checkpoint notes a source's `fingerprint` where it has one; one that appeared would be a difference.
        assert not hasattr(source, "fingerprint")


def test_the_hash_of_the_examples_is_that_of_older_checkpoints():
    source = Conversations([([1, 2, 3], [0, 1, 1]), ([4, 5], [0, 1])], batch_size=1, context_length=4, pad_id=0)
    assert source.state()["data"] == "036c421c6d2000da785e5d2db1c6a65af8c5943ea3f8f8b48c856a5c69b30858"
