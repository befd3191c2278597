"""Conversations: whole examples in rows, kept apart, with the loss where it was asked for."""

import json
import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup.data import Conversations

PAD = 0


def take(source, count):
    return [next(source) for _ in range(count)]


def rows_of(batch):
    return [{name: t[i].tolist() for name, t in batch.items()} for i in range(len(batch["tokens"]))]


def test_by_hand():
    examples = [([5, 6, 7], [0, 0, 1]), ([8, 9], [0, 1])]
    (row,) = rows_of(next(Conversations(examples, batch_size=1, context_length=6, pad_id=PAD)))
    assert row == {
        "tokens": [5, 6, 7, 8, 9, 0, 0],
        "mask": [0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0],
        "segments": [0, 0, 0, 1, 1, 2, 2],
        "positions": [0, 1, 2, 0, 1, 0, 1],
    }


def test_types():
    batch = next(Conversations([([5, 6], [0, 1])], 1, 4, PAD))
    assert {name: t.dtype for name, t in batch.items()} == {
        "tokens": torch.int64, "mask": torch.float32, "segments": torch.int64, "positions": torch.int64,
    }  # fmt: skip


examples_strategy = st.lists(
    st.lists(st.tuples(st.integers(1, 50), st.sampled_from([0, 1, 1])), min_size=1, max_size=12),
    min_size=1,
    max_size=25,
).filter(lambda examples: any(weight for e in examples for _, weight in e[1:8]))


@given(examples=examples_strategy, batch_size=st.sampled_from([1, 2, 6]), world=st.sampled_from([1, 2]))
def test_every_example_once_per_epoch(examples, batch_size, world):
    pairs = [([i for i, _ in e], [w for _, w in e]) for e in examples]
    sources = [Conversations(pairs, batch_size * world, 7, PAD, 3, r, world) for r in range(world)]
    rows = []
    while len(rows) < sources[0].rows_per_epoch:
        parts = [rows_of(next(source)) for source in sources]
        rows += [row for group in zip(*parts, strict=True) for row in group]
    found = []
    for row in rows[: sources[0].rows_per_epoch]:
        segments = np.array(row["segments"])
        assert (np.diff(segments) >= 0).all()
        for segment in range(segments.max() + 1):
            here = np.flatnonzero(segments == segment)
            ids = [row["tokens"][i] for i in here]
            assert [row["positions"][i] for i in here] == list(range(len(here)))
            if ids[0] != PAD:
                found.append((tuple(ids), tuple(row["mask"][i] for i in here)))
            else:
                assert set(ids) == {PAD} and not any(row["mask"][i] for i in here)
    expected = [(tuple(ids[:8]), (0, *map(float, mask[1:8]))) for ids, mask in pairs]
    assert sorted(found) == sorted(expected)


def test_resume_at_every_batch_and_on_other_ranks():
    examples = [(list(range(1, 2 + n % 9)), [1] * (1 + n % 9)) for n in range(1, 60)]
    source = Conversations(examples, 4, 12, PAD, seed=1)
    states, batches = [], []
    for _ in range(60):
        states.append(json.loads(json.dumps(source.state())))
        batches.append(next(source))
    assert source.epoch >= 3 and source.epochs_seen == pytest.approx(240 / source.rows_per_epoch)
    for at in range(58):
        for world in (1, 2, 4):
            for rank in range(world):
                resumed = Conversations(examples, 4, 12, PAD, 1, rank, world)
                resumed.load_state(states[at])
                for expected, batch in zip(batches[at : at + 2], take(resumed, 2), strict=True):
                    assert all(torch.equal(batch[n], t[rank::world]) for n, t in expected.items())


def test_a_long_example_loses_its_end_and_that_is_said(caplog):
    examples = [(list(range(1, 11)), [1] * 10), ([1, 2], [0, 1])]
    with caplog.at_level(logging.WARNING):
        source = Conversations(examples, 1, 5, PAD)
    assert source.truncated == 1
    assert "1 of 2 examples are longer than 6 tokens" in caplog.text
    lengths = sorted(len(np.flatnonzero(row["tokens"])) for b in take(source, 2) for row in rows_of(b))
    assert lengths == [2, 6]


def test_an_empty_answer_has_no_weight_and_gives_no_nan():
    source = Conversations([([5, 6], [0, 0]), ([7, 8], [0, 1])], batch_size=1, context_length=2, pad_id=PAD)
    assert source.without_loss == 1
    weights = sorted(float(b["mask"].sum()) for b in take(source, 2))
    assert weights == [0.0, 1.0]
    logits = torch.randn(1, 2, 10)
    for batch in take(source, 2):
        losses = torch.nn.functional.cross_entropy(logits.mT, batch["tokens"][:, 1:], reduction="none")
        assert torch.isfinite((losses * batch["mask"][:, 1:]).sum())


def test_only_the_first_token_has_a_weight():
    with pytest.raises(ValueError, match="none of 1 examples has a token to learn from"):
        Conversations([([5, 6], [1, 0])], 1, 4, PAD)
    with pytest.raises(ValueError, match="none of 1 examples"):
        Conversations([([5, 6, 7], [0, 0, 1])], 1, 1, PAD)
    with pytest.raises(ValueError, match="none of 0 examples"):
        Conversations([], 1, 4, PAD)


@pytest.mark.parametrize(
    ("example", "says"),
    [
        (([], []), "example 1: "),
        (([1, 2], [1]), "expected two equal lists"),
        (([1, -2], [0, 1]), "ids from -2 to 1, outside 0..99"),
        (([1, 100], [0, 1]), "ids from 1 to 100, outside 0..99"),
        (([1, 2], [0, float("nan")]), "negative or not a number"),
        (([1, 2], [0, -1]), "negative or not a number"),
    ],
)
def test_what_cannot_be_learned_from_is_named(example, says):
    with pytest.raises(ValueError, match=says) as error:
        Conversations([([1, 2], [0, 1]), example], 1, 4, PAD, vocab_size=100)
    assert "example 1" in str(error.value)


def test_little_padding():
    examples = [([1] * (3 + n % 40), [1] * (3 + n % 40)) for n in range(500)]
    assert Conversations(examples, 4, 127, PAD).padding < 0.01


def test_another_state():
    one = Conversations([([1, 2], [0, 1])], 1, 4, PAD)
    two = Conversations([([1, 3], [0, 1])], 1, 4, PAD)
    with pytest.raises(ValueError, match="data was"):
        two.load_state(one.state())
    with pytest.raises(ValueError, match="expected"):
        Conversations([([1, 2], [0, 1])], 3, 4, PAD, world_size=2)
    with pytest.raises(ValueError, match="context_length"):
        Conversations([([1, 2], [0, 1])], 3, 0, PAD)
