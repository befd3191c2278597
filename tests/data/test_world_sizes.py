"""The same batches on any number of ranks, and after any change of it: no document is lost, none comes twice."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.data import Conversations, Loader, ShardSet

WORLDS = (1, 2, 3, 4, 8)
BATCH = 24  # what all of these can share


class Numbered(ShardSet):
    """A set whose tokens are their own places, so that batches show which tokens of which documents they hold."""

    def gather(self, places):
        return places.copy()


def global_batches(make, schedule):
    """Batches of all ranks together, of a run that is stopped and resumed as `schedule` says: (ranks, batches) each."""
    state, batches = None, []
    for world, count in schedule:
        ranks = [make(rank, world) for rank in range(world)]
        for source in ranks:
            if state is not None:
                source.load_state(json.loads(state))
        for _ in range(count):
            parts = [next(source) for source in ranks]
            batch = torch.empty(BATCH, parts[0]["tokens"].shape[1], dtype=torch.int64)
            for rank, part in enumerate(parts):
                assert len(part["tokens"]) == BATCH // world
                batch[rank::world] = part["tokens"]
            batches.append(batch)
        states = {json.dumps(source.state()) for source in ranks}
        assert len(states) == 1  # any rank's is everybody's
        (state,) = states
    return torch.cat(batches)


schedules = st.lists(st.tuples(st.sampled_from(WORLDS), st.integers(1, 3)), min_size=1, max_size=6)


@settings(max_examples=15)
@given(
    schedule=schedules,
    document=st.integers(2, 30),
    windows=st.integers(5, 60),
    context=st.integers(1, 9),
    rest=st.integers(0, 8),
    seed=st.integers(0, 3),
    prefetch=st.sampled_from([0, 2]),
)
def test_documents_of_a_stream(make_shards, schedule, document, windows, context, rest, seed, prefetch):
    rest %= context
    num_tokens = windows * context + rest
    while num_tokens % document == 1:  # the last text would be empty
        document += 1
    made = make_shards(num_tokens, document=document)
    shards = Numbered(made.directory, made.manifest, made.files, made.stamps)
    assert shards.num_tokens == num_tokens

    def make(rank, world):
        return Loader(shards, BATCH, context, seed, rank, world, document_masks=False, prefetch=prefetch)

    rows = global_batches(make, schedule)
    alone = global_batches(lambda rank, world: make(0, 1), [(1, sum(count for _, count in schedule))])
    assert torch.equal(rows, alone)
    left_out = []
    for epoch in range(len(rows) // windows):
        seen = rows[epoch * windows : (epoch + 1) * windows, 1:].flatten().tolist()
        assert len(set(seen)) == len(seen)  # no token twice
        left_out.append(set(range(shards.num_tokens)) - set(seen))
        assert len(left_out[-1]) == rest  # and none lost, but for less than a window between the last and the first


@settings(max_examples=15)
@given(schedule=schedules, lengths=st.lists(st.integers(2, 9), min_size=24, max_size=80), seed=st.integers(0, 3))
def test_examples_in_rows(schedule, lengths, seed):
    first, examples = 1, []
    for length in lengths:  # every token has a number of its own
        examples.append((list(range(first, first + length)), [0] + [1] * (length - 1)))
        first += length

    def make(rank, world):
        return Conversations(examples, BATCH, 12, pad_id=0, seed=seed, rank=rank, world_size=world)

    rows = global_batches(make, schedule)
    alone = global_batches(lambda rank, world: make(0, 1), [(1, sum(count for _, count in schedule))])
    assert torch.equal(rows, alone)
    per_epoch = make(0, 1).order.num_items
    for epoch in range(len(rows) // per_epoch):
        seen = [t for row in rows[epoch * per_epoch : (epoch + 1) * per_epoch].tolist() for t in row if t]
        assert sorted(seen) == list(range(1, first))


def test_what_an_epoch_leaves_out_is_not_what_the_next_one_does(make_shards):
    made = make_shards(197)
    shards = Numbered(made.directory, made.manifest, made.files, made.stamps)
    loader = Loader(shards, 19, 10, document_masks=False)  # 19 windows, 7 tokens left out
    left_out = [set(range(197)) - set(next(loader)["tokens"][:, 1:].flatten().tolist()) for _ in range(4)]
    assert [len(each) for each in left_out] == [7] * 4
    assert set.intersection(*left_out) == set()


@pytest.mark.parametrize("world", [5, 7, 16])
def test_a_number_of_ranks_that_cannot_share_a_batch_is_refused(make_shards, world):
    with pytest.raises(ValueError, match=f"batch_size 24 .* cannot be shared by {world} ranks"):
        Loader(make_shards(100), BATCH, 8, rank=0, world_size=world)
