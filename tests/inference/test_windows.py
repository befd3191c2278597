"""Pages that no layer looks back to are given back, and nothing else changes."""

from dataclasses import replace

import pytest
import torch

from groundup.inference import Engine, SamplingParams
from groundup.inference.batch_cache import Reach, reach
from groundup.inference.decode import CompiledDecoder
from groundup.inference.scheduler import GIVEN_BACK, pages_at_once
from groundup.inference.speculative import NgramProposer
from groundup.model import AttentionConfig, BlockConfig, LatentAttentionConfig, MLPConfig
from tests.inference.small import CONFIGS, VOCAB, engine, model, tokenizer
from tests.model.variants import build, small

WINDOWED = {
    "windowed": model("windowed"),
    "sink_tokens": model("sink_tokens"),
    "latent": build(
        replace(
            small(BlockConfig(LatentAttentionConfig(4, 8, 4, 4, 4, window=5), MLPConfig(24))),
            vocab_size=VOCAB,
            context_length=64,
        )
    ),
}


def new_engine(name, **options):
    return Engine(WINDOWED[name], tokenizer(), page_size=4, **options)


def drained(engine, prompt, **options):
    """The answer, and the most pages that were held at once."""
    request, most = engine.submit(prompt, SamplingParams(**options)), 0
    while request.finish_reason is None:
        engine.step()
        most = max(most, engine.stats().pages_used)
    return request.completion(), most


def test_how_far_models_look_back():
    assert reach(CONFIGS["gqa"]) is None and reach(CONFIGS["local_local_global"]) is None
    assert reach(CONFIGS["mamba2"]) is None and reach(CONFIGS["mamba2_mamba2_gqa"]) is None
    mixers = [AttentionConfig(2, 1, 8, window=3), AttentionConfig(2, 1, 8, window=7, sink_tokens=2)]
    both = small(*(BlockConfig(mixer, MLPConfig(8)) for mixer in mixers))
    assert reach(both) == Reach(7, 2) and reach(replace(both, num_layers=1)) == Reach(3, 0)
    assert reach(replace(both, blocks=(*both.blocks, CONFIGS["mamba2"].blocks[0]), num_layers=3)) == Reach(7, 2)


def test_pages_at_once_by_hand():
    """Window 6, pages of 4: position 13 sees 8 to 13, in two pages, and 12 sees 7 to 12, in three."""
    assert pages_at_once(100, 4, 1, None) == 25
    assert pages_at_once(100, 4, 1, Reach(6, 0)) == 3
    assert pages_at_once(100, 4, 8, Reach(6, 5)) == 2 + 5
    assert pages_at_once(9, 4, 8, Reach(6, 5)) == 3


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("step_tokens", [1024, 3])
def test_logits_are_those_of_the_whole_text(name, step_tokens):
    """A prompt in chunks, then tokens one by one and several to verify; pages held are those of the window."""
    prompt = torch.randint(VOCAB, (30,), generator=torch.Generator().manual_seed(3)).tolist()
    ours = new_engine(name, step_tokens=step_tokens, prefix_cache=False, proposer=NgramProposer(1, 1), draft_tokens=2)
    done, most = drained(ours, prompt, max_tokens=30, temperature=0, logprobs=1)
    made = WINDOWED[name]
    with torch.no_grad():
        logits = made(torch.tensor([[*prompt, *done.tokens]]))[0, 29:-1]
    logits[:, tokenizer().vocab_size :] = -torch.inf
    assert done.tokens == logits.argmax(-1).tolist()
    expected = logits.log_softmax(-1)
    for row, entry in zip(expected, done.logprobs or [], strict=True):
        assert entry.logprob == pytest.approx(float(row.max()), abs=1e-5)
    bound = pages_at_once(60, 4, min(step_tokens, 30), reach(made.config))
    assert most <= bound and (step_tokens == 1024 or bound < 15)
    assert ours.stats().pages_used == 0


def test_a_text_longer_than_all_pages():
    """24 tokens of memory for 64; the same text with room for all of it."""
    small_engine = new_engine("windowed", cache_tokens=24, step_tokens=8)
    prompt = list(range(40))
    done, most = drained(small_engine, prompt, max_tokens=24, temperature=0)
    assert len(done.tokens) > 0 and most <= 6
    assert done.tokens == new_engine("windowed").generate(prompt, max_tokens=24, temperature=0).tokens
    with pytest.raises(ValueError, match="40 tokens do not fit the cache of 24"):
        engine("gqa", cache_tokens=24, page_size=4, step_tokens=8).submit(prompt)


def test_many_share_what_one_would_have_held():
    """Admission counts what a step needs: three texts of 40 tokens, 30 pages, go through 12 side by side."""
    prompts = [[i] + list(range(39)) for i in range(3)]
    ours = new_engine("windowed", cache_tokens=48, step_tokens=8)
    got = ours.generate(prompts, max_tokens=12, temperature=0)
    wide = new_engine("windowed").generate(prompts, max_tokens=12, temperature=0)
    assert [c.tokens for c in got] == [c.tokens for c in wide]
    assert ours.stats().pages_used == 0


def test_pages_behind_the_window_serve_the_next_with_the_same_beginning():
    ours = new_engine("windowed", step_tokens=8)
    prompt = list(range(40))
    first = ours.generate(prompt, max_tokens=4, temperature=0)
    second, most = drained(ours, prompt, max_tokens=4, temperature=0)
    assert second.tokens == first.tokens
    assert ours.stats().cached_prompt_tokens == 36
    assert most <= pages_at_once(44, 4, 8, reach(WINDOWED["windowed"].config)) + 1


def test_sink_pages_stay_and_places_are_marked():
    ours, held = new_engine("sink_tokens", prefix_cache=False), []
    request = ours.submit(list(range(40)))
    ours.step()
    look = reach(WINDOWED["sink_tokens"].config)
    assert look is not None
    for i, page in enumerate(request.pages):
        behind = 4 * (i + 1) <= request.computed - look.window + 1
        assert (page == GIVEN_BACK) == (behind and 4 * i >= look.sink_tokens)
        held.append(ours.core.execution.store.tables[request.slot, i] == ours.core.num_pages)
    assert held == [page == GIVEN_BACK for page in request.pages] and any(held)
    ours.abort(request)
    assert ours.stats().pages_used == 0


def test_bits_do_not_depend_on_what_was_given_back():
    prompt = list(range(40))
    plain = new_engine("windowed", batch_invariant=True).generate(prompt, max_tokens=8, temperature=0, logprobs=1)
    tight = new_engine("windowed", batch_invariant=True, cache_tokens=24, step_tokens=8, prefix_cache=False)
    assert tight.generate(prompt, max_tokens=8, temperature=0, logprobs=1) == plain


@pytest.mark.slow
def test_the_compiled_step_reads_no_page_that_was_given_back():
    pytest.importorskip("numba")
    options = {"max_tokens": 12, "temperature": 0}
    plain = Engine(WINDOWED["sink_tokens"], tokenizer()).generate(list(range(50)), **options)
    ours = Engine(
        WINDOWED["sink_tokens"], tokenizer(), cache_tokens=48, step_tokens=8, prefix_cache=False,
        decoder=lambda model, store: CompiledDecoder.build(model, store, "fp32", threads=1),
    )  # fmt: skip
    assert ours.generate(list(range(50)), **options).tokens == plain.tokens
