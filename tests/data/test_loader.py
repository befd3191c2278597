"""The loader: every token predicted once per epoch, whatever is resumed, on however many ranks."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.data import Loader, ShardSet

from .conftest import Bytes


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def take(loader, count):
    return [next(loader) for _ in range(count)]


class Numbered(ShardSet):
    """A set whose tokens are their own places, so that batches show which places they hold."""

    def gather(self, places):
        return places.copy()


def numbered(shards):
    return Numbered(shards.directory, shards.manifest, shards.files, shards.stamps)


def test_by_hand(make_shards):
    """10 tokens on a circle, windows of 3: three windows that follow each other, one token left out."""
    loader = Loader(numbered(make_shards(10)), batch_size=3, context_length=3, document_masks=False)
    tokens = next(loader)["tokens"]
    assert tokens.shape == (3, 4) and tokens.dtype == torch.int64
    assert ((tokens[:, 1:] - tokens[:, :-1]) % 10 == 1).all()
    starts = sorted(tokens[:, 0].tolist())
    gaps = sorted((b - a) % 10 for a, b in zip(starts, starts[1:] + starts[:1], strict=True))
    assert gaps == [3, 3, 4]
    assert (loader.tokens_per_batch, loader.windows_per_epoch) == (9, 3)
    assert (loader.epoch, loader.epochs_seen) == (1, 1.0)


@settings(max_examples=40)
@given(
    num_tokens=st.integers(12, 300).filter(lambda n: n % 10 != 1),
    context=st.integers(1, 11),
    batch=st.integers(1, 4),
    world=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 5),
    shard_tokens=st.sampled_from([7, 10**9]),
)
def test_every_token_is_predicted_once_per_epoch(make_shards, num_tokens, context, batch, world, seed, shard_tokens):
    shards = numbered(make_shards(num_tokens, shard_tokens=shard_tokens))
    ranks = [Loader(shards, batch * world, context, seed, rank, world, document_masks=False) for rank in range(world)]
    windows = num_tokens // context
    rows = []
    while len(rows) < 2 * windows:
        parts = [next(loader)["tokens"] for loader in ranks]
        rows += torch.stack(parts, dim=1).flatten(0, 1).tolist()  # rank r holds rows r, r + world, ...
    for epoch in range(2):
        predicted = [t for row in rows[epoch * windows : (epoch + 1) * windows] for t in row[1:]]
        assert len(predicted) == len(set(predicted)) == windows * context
        assert num_tokens - len(predicted) < context


def test_resume_at_every_batch_across_epochs(make_shards):
    """200 batches over 20 epochs; from each of them a fresh loader goes on with the same three."""
    shards = make_shards(331, document=10)
    loader = Loader(shards, batch_size=4, context_length=8, seed=3)
    states, batches = [], []
    for _ in range(203):
        states.append(json.loads(json.dumps(loader.state())))
        batches.append(next(loader))
    assert loader.epoch == 19
    resumed = Loader(shards, batch_size=4, context_length=8, seed=3)
    for at in range(200):
        resumed.load_state(states[at])
        assert all(same(a, b) for a, b in zip(take(resumed, 3), batches[at : at + 3], strict=True)), at


@pytest.mark.parametrize("before", [1, 2, 4])
@pytest.mark.parametrize("after", [1, 2, 4])
def test_resume_on_another_number_of_ranks(make_shards, before, after):
    shards = make_shards(331)
    whole = [b["tokens"] for b in take(Loader(shards, 4, 8, document_masks=False), 30)]

    def run(world, state, count):
        ranks = [Loader(shards, 4, 8, 0, r, world, document_masks=False) for r in range(world)]
        for loader in ranks:
            if state:
                loader.load_state(state)
        batches = []
        for _ in range(count):
            batch = torch.empty(4, 9, dtype=torch.int64)
            for rank, loader in enumerate(ranks):
                batch[rank::world] = next(loader)["tokens"]
            batches.append(batch)
        assert len({json.dumps(loader.state()) for loader in ranks}) == 1
        return batches, ranks[0].state()

    first, state = run(before, None, 13)
    second, _ = run(after, state, 17)
    assert all(torch.equal(a, b) for a, b in zip(first + second, whole, strict=True))


@pytest.mark.parametrize("depth", [1, 3])
def test_prefetching_changes_neither_batches_nor_state(make_shards, depth):
    shards = make_shards(331)
    plain, ahead = Loader(shards, 4, 8), Loader(shards, 4, 8, prefetch=depth)
    for _ in range(50):
        assert same(next(plain), next(ahead))
        assert plain.state() == ahead.state()
    state = plain.state()
    expected = take(plain, 5)
    take(ahead, 7)
    ahead.load_state(state)
    assert all(same(a, b) for a, b in zip(take(ahead, 5), expected, strict=True))


def test_segments_by_hand(make_shards):
    loader = Loader(make_shards(40, document=4), batch_size=2, context_length=7)
    batch = next(loader)
    for tokens, segments in zip(batch["tokens"].tolist(), batch["segments"].tolist(), strict=True):
        number, expected = 0, []
        for token in tokens:
            number += token == Bytes().end_of_text
            expected.append(number)
        assert segments == expected
        assert len(set(segments)) in (2, 3)
    assert "mask" not in batch


def test_a_first_token_sees_its_end_of_text_and_nothing_before_it(make_shards):
    batch = next(Loader(make_shards(40, document=4), batch_size=4, context_length=7))
    tokens, segments = batch["tokens"], batch["segments"]
    first = (tokens[:, :-1] == Bytes().end_of_text).nonzero()
    for row, column in first.tolist():
        visible = segments[row, : column + 1] == segments[row, column]
        assert visible.sum() == 1 and visible[column]
        assert segments[row, column] == segments[row, column + 1]


def test_segments_are_left_out_where_they_say_nothing(make_shards):
    shards = make_shards(1000, document=500)
    loader = Loader(shards, batch_size=1, context_length=50)
    with_segments = 0
    for batch in take(loader, 40):
        crossing = (batch["tokens"][:, 1:] == shards.end_of_text).any()
        assert ("segments" in batch) == bool(crossing)
        with_segments += int(crossing)
    assert 2 <= with_segments <= 8
    assert all("segments" not in b for b in take(Loader(shards, 4, 50, document_masks=False), 20))


def test_tokens_are_the_texts(make_shards):
    shards = make_shards(331, shard_tokens=50)
    stream = np.tile(shards.tokens.astype(np.int64), 2)
    contents = {tuple(stream[i : i + 9]) for i in range(331)}
    for batch in take(Loader(shards, 4, 8), 30):
        assert {tuple(row) for row in batch["tokens"].tolist()} <= contents


def test_seeds_and_epochs_differ(make_shards):
    shards = make_shards(331)
    first = next(Loader(shards, 41, 8, seed=0, document_masks=False))["tokens"]
    assert torch.equal(first, next(Loader(shards, 41, 8, seed=0, document_masks=False))["tokens"])
    assert not torch.equal(first, next(Loader(shards, 41, 8, seed=1, document_masks=False))["tokens"])
    loader = Loader(numbered(shards), 41, 8, document_masks=False)
    starts = [set(next(loader)["tokens"][:, 0].tolist()) for _ in range(4)]
    assert len(set(map(frozenset, starts))) > 1  # windows begin elsewhere in another epoch


def test_data_shorter_than_a_window(make_shards):
    shards = make_shards(30)
    with pytest.raises(ValueError, match="context_length 64 needs at least 65 tokens.*30.*at most 29"):
        Loader(shards, 2, 64)
    loader = Loader(shards, 2, 64, shorten=True)
    assert loader.context_length == 29 and next(loader)["tokens"].shape == (2, 30)
    assert Loader(shards, 2, 29).context_length == 29
    with pytest.raises(ValueError, match="expected at least 1"):
        Loader(shards, 2, 0)


@pytest.mark.parametrize(("batch_size", "rank", "world_size"), [(3, 0, 2), (0, 0, 1), (2, 2, 2), (2, -1, 2), (2, 0, 0)])
def test_impossible_ranks(make_shards, batch_size, rank, world_size):
    with pytest.raises(ValueError, match="expected"):
        Loader(make_shards(30), batch_size, 4, rank=rank, world_size=world_size)


def test_a_state_of_something_else(make_shards):
    shards = make_shards(331)
    state = Loader(shards, 4, 8, seed=1).state()
    for other in (Loader(shards, 4, 8), Loader(shards, 4, 9, seed=1), Loader(make_shards(332), 4, 8, seed=1)):
        with pytest.raises(ValueError, match="cannot resume: (seed|context_length|data) was"):
            other.load_state(state)
    for wrong in ({}, {**state, "samples": -1}, {**state, "samples": "1"}, {**state, "more": 1}):
        with pytest.raises(ValueError, match="not the state"):
            Loader(shards, 4, 8, seed=1).load_state(wrong)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_data_exchanged_during_training_stops_it(make_shards, prefetch):
    shards = make_shards(331)
    loader = Loader(shards, 4, 8, prefetch=prefetch)
    next(loader)
    (shards.directory / "shard-00000.bin").write_bytes(bytes(662))
    with pytest.raises(ValueError, match="changed or removed"):
        take(loader, 4)
    state = loader.state()
    with pytest.raises(ValueError, match="changed or removed"):
        next(loader)
    assert loader.state() == state


def test_a_folder_is_opened_and_verified(make_shards):
    shards = make_shards(331)
    assert same(next(Loader(shards.directory, 4, 8)), next(Loader(shards, 4, 8)))
    assert same(next(Loader(str(shards.directory), 4, 8)), next(Loader(shards, 4, 8)))


@pytest.mark.gpu
def test_batches_on_a_gpu_are_the_same(make_shards):
    shards = make_shards(331)
    for cpu, gpu in zip(take(Loader(shards, 4, 8), 20), take(Loader(shards, 4, 8, device="cuda"), 20), strict=True):
        assert all(t.is_cuda for t in gpu.values())
        assert same(cpu, {name: t.cpu() for name, t in gpu.items()})
