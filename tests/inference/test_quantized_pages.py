import pytest
import torch

from groundup.evaluation import token_nats
from groundup.inference.batch_cache import PageStore, bytes_per_token
from groundup.inference.decode import CompiledDecoder
from groundup.inference.pages import Pages
from groundup.inference.quantized_pages import (
    QuantizedPageStore,
    quantized_bytes_per_token,
    rounded,
    rounded_caches,
)
from groundup.inference.runner import Span, TorchRunner
from groundup.kernels.quantize import E4M3
from tests.inference.small import CONFIGS, VOCAB, engine, model, new_model

NAMES = ("gqa", "latent", "windowed", "sink_tokens", "moe", "mamba2_mamba2_gqa")


def store_of(name, format, pages=32, page_size=4):
    return QuantizedPageStore(format, model(name).config, pages, page_size, rows=2, row_pages=16)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_errors_are_those_of_the_format(scale):
    """int8: half of a 127th of the largest; e4m3: 1/16, or 2^-10 of a 448th. To one rounding of float32."""
    x = torch.randn(2, 9, 3, 16, generator=torch.Generator().manual_seed(0)) * scale * torch.logspace(-3, 0, 16)
    largest = x.abs().amax(-1, keepdim=True)
    for number, bound in ((torch.int8, largest / 254), (E4M3, torch.maximum(x.abs() / 16, largest / 448 / 1024))):
        (again,) = rounded([x], number)
        assert again.shape == x.shape and again.dtype == x.dtype
        assert ((again - x).abs() <= bound * (1 + 1e-5)).all() and not torch.equal(again, x)
        assert torch.equal(rounded([torch.zeros(1, 1, 1, 4)], number)[0], torch.zeros(1, 1, 1, 4))


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_what_was_written_is_fetched_rounded_wherever_it_lies(format):
    store = store_of("gqa", format)
    new = [torch.randn(6, *stream.shape[1:]) for stream in store.streams[0]]
    slots = torch.tensor([8, 9, 10, 11, 20, 21])  # pages 2 and 5
    store.write(0, slots, new)
    found = store.fetch(0, torch.tensor([[2, 5]]))
    for got, given, expected in zip(found, new, store.seen(new), strict=True):
        assert got.dtype == torch.float32 and torch.equal(got[0, :6], expected)
        assert not torch.equal(expected, given) and torch.equal(got[0, 6:], torch.zeros_like(got[0, 6:]))
    store.scrub([2])
    assert all(float(part[0, :4].abs().sum()) == 0 for part in store.fetch(0, torch.tensor([[2]])))


@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_counted_to_the_byte(name):
    store = store_of(name, "int8")
    kept = sum(t.nbytes for kind in (store.streams, store.scales) for layer in kind for t in layer)
    config = model(name).config
    assert quantized_bytes_per_token(config) * (store.num_pages + 1) * store.page_size == kept
    plain = PageStore(config, 32, 4, 2, 16)
    assert bytes_per_token(config, torch.float32) * 33 * 4 == sum(t.nbytes for s in plain.streams for t in s)


@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_over_pages_is_a_pass_with_rounded_keys_and_values(name, format):
    """Prompt at once, in chunks, and token by token: what `RoundedCache` shows in one pass."""
    precise = new_model(name)  # in float64, or the order of sums might decide between two neighbours of eight bits
    precise.compute_dtype = torch.float64
    pages, store = Pages(32, 4), QuantizedPageStore(format, precise.config, 32, 4, 2, 16, torch.float64)
    runner = TorchRunner(precise, store)
    ids = torch.randint(VOCAB, (30,), generator=torch.Generator().manual_seed(3)).tolist()
    with torch.no_grad():
        expected = precise(torch.tensor([ids]), caches=rounded_caches(CONFIGS[name], format))[0]
        exact = precise(torch.tensor([ids]))[0]
    pages.take()
    taken = [page for page in (pages.take() for _ in range(8)) if page is not None]
    store.place(1, 0, taken)
    done = 0
    for count in (11, 1, 6, 1, 11):
        logits = runner.run([Span(ids[done : done + count], done, taken, 1, count)])
        torch.testing.assert_close(logits, expected[done : done + count], rtol=1e-5, atol=1e-6)
        done += count
    assert 0 < float((expected - exact).norm() / exact.norm()) < {"int8": 0.05, "fp8": 0.2}[format]


def test_an_engine_keeps_half_and_answers_the_same_however_prompts_are_cut():
    prompts = [list(range(5, 25)), [7, 8], list(range(5, 21))]
    answers = []
    for options in ({}, {"step_tokens": 3}, {"prefix_cache": False, "batch_size": 1}):
        small = engine(cache_format="int8", page_size=4, dtype=torch.float64, **options)
        answers.append([c.tokens for c in small.generate(prompts, temperature=0, max_tokens=12)])
    assert answers[0] == answers[1] == answers[2]
    assert small.core.execution.store.streams[0][0].dtype == torch.int8
    ratio = quantized_bytes_per_token(CONFIGS["gqa"]) / bytes_per_token(CONFIGS["gqa"], torch.float32)
    assert ratio == (4 + 4) / 16  # heads of four numbers: as many bytes for their scale


def test_scoring_with_rounded_caches_changes_the_score_a_little():
    documents = [torch.randint(VOCAB, (40,), generator=torch.Generator().manual_seed(1)).numpy()]
    options = {"begin": 0, "context_length": 32}
    (exact,) = token_nats(model("gqa"), documents, **options)
    (again,) = token_nats(model("gqa"), documents, caches=rounded_caches(CONFIGS["gqa"], "int8"), **options)
    assert 0 < abs(again - exact).mean() < 0.05


def test_the_compiled_step_and_wrong_names_are_refused():
    store = store_of("gqa", "int8", page_size=16)
    assert "int8" in getattr(CompiledDecoder.build(model("gqa"), store), "reason", "")
    with pytest.raises(ValueError, match="did you mean 'int8'"):
        engine(cache_format="int")
