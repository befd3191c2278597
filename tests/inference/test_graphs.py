"""Recorded steps against the passes that they stand for. Without a GPU, a trace of the step's operations is what is
replayed: like a CUDA graph, it runs the same operations on the same tensors, whatever has happened in between."""

import logging
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from groundup.inference import Engine
from groundup.inference.batch_cache import PageStore
from groundup.inference.graphs import GraphRunner, NoGraphs, StepBuffers, _unfit, batch_sizes, refusal
from groundup.inference.runner import Span, TorchRunner
from groundup.inference.speculative import NgramProposer
from tests.inference.small import CONFIGS, VOCAB, answers, crowd, engine, model, new_model

FIT = [name for name in CONFIGS if _unfit(model(name), PageStore(CONFIGS[name], 1, 4, 1, 1)) is None]
REPLAYED = ["gqa", "sink_tokens", "sinks", "local_local_global", "learned_positions"]
"""Without experts: on a CPU, how many rows each has is asked by the host."""


def traced(step):
    return make_fx(step)()


class OwnForm(PageStore):
    gathers_only = True


def builder(record=traced) -> Any:
    return lambda model, store: GraphRunner(model, store, record)


def new_store(name, rows=6):
    store = PageStore(model(name).config, 40, 4, rows, row_pages=16)
    for row in range(rows):
        store.place(row, 0, range(6 * row, 6 * row + 6))
    return store


def prompts(store, lengths, name):
    """The store with so many tokens of each row computed, and the texts."""
    generator = torch.Generator().manual_seed(1)
    texts = torch.randint(VOCAB, (len(lengths), 24), generator=generator).tolist()
    spans = [Span(text[:n], 0, [], row, 0) for row, (text, n) in enumerate(zip(texts, lengths, strict=True)) if n]
    TorchRunner(model(name), store).run(spans)
    return texts


def test_what_fits():
    assert set(REPLAYED) | {"windowed", "moe"} == set(FIT)


@pytest.mark.parametrize("name", REPLAYED)
def test_a_replay_is_a_pass_at_any_length(name):
    """Recorded at one length and replayed at others, by fewer rows than there is room for, and in another order."""
    store = new_store(name)
    lengths = [3, 9, 1, 14, 0]
    texts = prompts(store, lengths, name)
    ours, plain = GraphRunner(model(name), store, record=traced), TorchRunner(model(name), store)
    for rows in ([0, 1, 2, 3, 4], [3, 1, 0], [2, 0, 4, 1], [1], [4, 3, 2, 1, 0], [0]):
        spans = [Span([texts[row][lengths[row]]], lengths[row], [], row, 1) for row in rows]
        got = ours.run(spans)
        kept = [[stream.clone() for stream in streams] for streams in store.streams]
        torch.testing.assert_close(got, plain.run(spans), rtol=1e-4, atol=1e-5)
        for mine, theirs in zip(kept, store.streams, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        for row in rows:
            lengths[row] += 1
    assert sorted(ours._steps) == [1, 4, 6]


def test_padding_rows_store_zeros_in_the_page_that_nobody_gets():
    store = new_store("gqa")
    for streams in store.streams:
        for stream in streams:
            stream[-4:] = 7.0
    GraphRunner(model("gqa"), store, record=lambda step: step).run([Span([5], 0, [], row, 1) for row in range(3)])
    for streams in store.streams:
        for stream in streams:
            assert stream[-4].eq(0).all() and stream[-3:].eq(7).all()


def test_what_a_replay_gave_is_not_overwritten_by_the_next():
    store, fixed = new_store("gqa"), torch.zeros(1, VOCAB)
    runner = GraphRunner(model("gqa"), store, record=lambda step: lambda: fixed.add_(1))
    first, second = (runner.run([Span([5], 0, [], 0, 1)]) for _ in range(2))
    assert first.unique().tolist() == [1] and second.unique().tolist() == [2]


def test_what_cannot_be_recorded_is_run_by_torch_and_said(caplog):
    calls = []

    def record(step):
        calls.append(step)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    store = new_store("gqa")
    runner, span = GraphRunner(model("gqa"), store, record), [Span([5], 0, [], 0, 1)]
    with caplog.at_level(logging.WARNING):
        got = runner.run(span)
    runner.run(span)
    torch.testing.assert_close(got, TorchRunner(model("gqa"), store).run(span))
    assert len(calls) == 1 and [r.getMessage() for r in caplog.records] == [
        "decoding without CUDA graphs: operation not permitted when stream is capturing"
    ]


@pytest.mark.parametrize(("name", "record"), [("windowed", traced), ("moe", lambda step: step)])
def test_answers_are_those_of_passes(name, record):
    requests = crowd(4)
    expected = answers(engine(name, batch_size=4, page_size=4), requests)
    ours = engine(name, batch_size=4, page_size=4, decoder=builder(record))
    assert [c.tokens for c in answers(ours, requests)] == [c.tokens for c in expected]


def test_drafts_are_verified_by_passes_beside_recorded_steps():
    ours = engine(decoder=builder(lambda step: step), proposer=NgramProposer(2, 1))
    prompt = [5, 6, 7, 5, 6, 7, 5]
    plain = engine().generate(prompt, temperature=0, max_tokens=30)
    assert ours.generate(prompt, temperature=0, max_tokens=30).tokens == plain.tokens
    assert ours.stats().drafted_tokens > 0


def test_new_weights_are_recorded_again():
    model = new_model("gqa")
    made: list[GraphRunner] = []

    def build(model, store):
        made.append(GraphRunner(model, store, record=lambda step: step))
        return made[-1]

    engine_ = Engine(model, engine().tokenizer, decoder=build)
    engine_.generate([5, 6, 7], temperature=0, max_tokens=3)
    with torch.no_grad():
        for p in model.parameters():
            p.data = p.data + 0.05
    got = engine_.generate([5, 6, 7], temperature=0, max_tokens=8)
    assert len(made) == 2
    assert got.tokens == Engine(model, engine().tokenizer).generate([5, 6, 7], temperature=0, max_tokens=8).tokens


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("latent", "layer 0 has LatentAttentionConfig"),
        ("mamba2_mamba2_gqa", "layer 0 has Mamba2Config"),
        ("alibi", "layer 0 copies its slopes"),
    ],
)
def test_refusals_say_why(name, reason):
    made = _unfit(model(name), new_store(name))
    assert isinstance(made, NoGraphs) and made.reason.startswith(reason)
    on_cpu = refusal(model("gqa"), new_store("gqa"))
    assert on_cpu is not None and "pages are on cpu" in on_cpu.reason
    gathered = _unfit(model("gqa"), OwnForm(model("gqa").config, 1, 4, 1, 1))
    assert gathered is not None and "gathered" in gathered.reason


def test_sizes_of_batches():
    assert batch_sizes(32) == [1, 2, 4, 8, 16, 32] and batch_sizes(5) == [1, 2, 4, 5] and batch_sizes(1) == [1]
    with pytest.raises(AssertionError, match="one token of each"):
        StepBuffers(new_store("gqa"), 1).fill([Span([1, 2], 0, [], 0, 1)])


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
def test_answers_on_a_gpu_are_those_of_the_cpu(name):
    """By recorded steps, or by passes where there are none; attention in place where its layers have keys."""
    requests = [(prompt, params) for prompt, params in crowd(6) if params.temperature == 0]
    expected = answers(engine(name, batch_size=4), requests)
    on_gpu = Engine(new_model(name).cuda(), engine().tokenizer, batch_size=4)
    got = answers(on_gpu, requests)
    assert isinstance(on_gpu.core.execution.fast, GraphRunner) == (name in FIT)
    for a, b in zip(got, expected, strict=True):
        logprobs = [[each.logprob for each in completion.logprobs] for completion in (a, b)]
        assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-3) and a.tokens == b.tokens


@pytest.mark.gpu
def test_graphs_equal_passes_on_a_gpu():
    config = new_model("gqa").cuda()
    store = PageStore(config.config, 40, 4, 4, row_pages=16, device="cuda")
    for row in range(4):
        store.place(row, 0, range(8 * row, 8 * row + 8))
    graphs, plain = GraphRunner(config, store), TorchRunner(config, store)
    for at in range(20):
        spans = [Span([(at + row) % VOCAB], at, [], row, 1) for row in range(1 + at % 4)]
        torch.testing.assert_close(graphs.run(spans), plain.run(spans), rtol=1e-3, atol=1e-3)
    assert not graphs._failed and sorted(graphs._steps) == [1, 2, 4]
