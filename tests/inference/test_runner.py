import pytest
import torch

from groundup.inference.batch_cache import PageStore, SpanCache, bytes_per_token, is_recurrent, stream_shapes
from groundup.inference.pages import Pages
from groundup.inference.runner import InvariantRunner, Span, TorchRunner, grouped
from groundup.model import CountingCache
from tests.inference.small import CONFIGS, RECURRENT, VOCAB, model


def new_runner(name, kind=TorchRunner, page_size=4, num_pages=64):
    store = PageStore(model(name).config, num_pages, page_size, rows=4, row_pages=16)
    return kind(model(name), store)


def in_place(model, store):
    return TorchRunner(model, store, in_place=True)


def texts(count, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (count, length), generator=generator).tolist()


class Table:
    """A sequence as the scheduler keeps it: pages out of order, one row of the store."""

    def __init__(self, runner, pages, slot, ids):
        self.runner, self.taken, self.slot, self.ids, self.done, self.pages = runner, pages, slot, ids, 0, []

    def span(self, count, wanted):
        while len(self.pages) * self.taken.page_size < self.done + count:
            self.pages.append(self.taken.take())
        self.runner.store.place(self.slot, 0, self.pages)
        span = Span(self.ids[self.done : self.done + count], self.done, self.pages, self.slot, wanted)
        self.done += count
        return span


CUTS = [([5, 30], [0, 2]), ([9, 1], [9, 1]), ([1, 1], [1, 1]), ([12, 1], [3, 0]), ([1, 1], [1, 1]), ([1, 6], [1, 6])]


@pytest.mark.parametrize("kind", [TorchRunner, InvariantRunner, in_place])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_an_uncached_pass(name, kind):
    """Two sequences side by side: chunks, single tokens and several tokens to verify, in pages of any order."""
    page_size = 16 if kind is InvariantRunner else 4
    runner = new_runner(name, kind, page_size)
    pages, (a, b) = Pages(64, page_size), texts(2, 40)
    pages.take()
    tables = [Table(runner, pages, 2, a), Table(runner, pages, 0, b)]
    with torch.no_grad():
        expected = [model(name)(torch.tensor([ids]))[0] for ids in (a, b)]
    for counts, wanted in CUTS:
        spans = [table.span(*cut) for table, *cut in zip(tables, counts, wanted, strict=True)]
        rows = [e[s.end - s.wanted : s.end] for e, s in zip(expected, spans, strict=True)]
        torch.testing.assert_close(runner.run(spans), torch.cat(rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_and_bytes_are_what_layers_append(name):
    config, caches = model(name).config, [CountingCache() for _ in model(name).blocks]
    with torch.no_grad():
        model(name)(torch.zeros(1, 3, dtype=torch.long), caches=caches)
    assert bytes_per_token(config, torch.float32) == sum(cache.bytes_per_token for cache in caches)
    assert is_recurrent(config) == (name in RECURRENT) == any(cache.fixed_bytes for cache in caches)
    store = PageStore(config, 3, 4, 1, 2, torch.bfloat16)
    for i, streams in enumerate(store.streams):
        assert [tuple(s.shape[1:]) for s in streams] == stream_shapes(config.block(i).mixer)
        assert all(len(s) == 16 and s.dtype == torch.bfloat16 for s in streams)  # one page more than there are


@pytest.mark.parametrize("name", ["gqa", "windowed", "latent", "mamba2_mamba2_gqa"])
def test_few_queries_in_place_gather_nothing(name, monkeypatch):
    """Except for latents, which have no kernel."""
    runner, pages, fetched, fetch = new_runner(name, in_place), Pages(64, 4), [], SpanCache._fetch
    table = Table(runner, pages, 1, texts(1, 60)[0])
    runner.run([table.span(4, 0)])
    monkeypatch.setattr(SpanCache, "_fetch", lambda *a: fetched.append(a[1]) or fetch(*a))
    runner.run([table.span(1, 1)])
    runner.run([table.span(4, 4)])
    assert bool(fetched) == (name == "latent")
    runner.run([table.span(40, 4)])  # too many for the kernel, which takes 64 queries times heads per kv head
    assert fetched


@pytest.mark.parametrize("name", ["windowed", "sink_tokens", "local_local_global"])
def test_a_window_fetches_its_own_pages_only(name, monkeypatch):
    runner, pages, fetched, fetch = new_runner(name), Pages(64, 4), [], SpanCache._fetch
    table = Table(runner, pages, 1, texts(1, 40)[0])
    runner.run([table.span(39, 0)])
    monkeypatch.setattr(SpanCache, "_fetch", lambda *a: fetched.append(a[1].pages.shape[1]) or fetch(*a))
    runner.run([table.span(1, 1)])
    assert min(fetched) <= 3 and max(fetched) == (10 if name == "local_local_global" else min(fetched))


def test_a_pass_that_fails_leaves_states_as_they_were():
    runner, pages = new_runner("mamba2"), Pages(64, 4)
    table = Table(runner, pages, 0, texts(1, 12)[0])
    runner.run([table.span(6, 0)])
    before = [[state.clone() for state in states] for states in runner.store.states]
    span = table.span(3, 3)
    hook = model("mamba2").blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runner.run([span])
    hook.remove()
    for old, new in zip(before, runner.store.states, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
    with torch.no_grad():
        expected = model("mamba2")(torch.tensor([table.ids]))[0, 6:9]
    torch.testing.assert_close(runner.run([span]), expected, rtol=1e-4, atol=1e-5)


def test_spans_of_like_length_go_together():
    def span(count, start):
        return Span([1] * count, start, [], 0, 1)

    spans = [span(1, 7), span(100, 0), span(1, 90), span(110, 0), span(5, 8), span(1, 0), span(20, 0)]
    assert sorted(map(sorted, grouped(spans))) == [[0, 2], [1, 3], [4], [5], [6]]


def test_nothing_wanted_gives_no_rows():
    runner, pages = new_runner("gqa"), Pages(64, 4)
    table = Table(runner, pages, 0, texts(1, 12)[0])
    assert runner.run([table.span(6, 0)]).shape == (0, VOCAB)
    assert InvariantRunner(model(), runner.store).run([]).shape == (0, VOCAB)


def test_pages_of_a_failed_request_are_zeroed():
    store = PageStore(model().config, 3, 4, 1, 2)
    for streams in store.streams:
        for stream in streams:
            stream[:] = torch.nan
    store.scrub([1, 2])
    for streams in store.streams:
        for stream in streams:
            assert stream.isnan().flatten(1).all(1).tolist() == [True] * 4 + [False] * 8 + [True] * 4
