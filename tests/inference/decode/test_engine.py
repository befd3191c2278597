"""The engine over the compiled decode step: the answers of torch's runner, and of itself in any company."""

import copy
import functools
from dataclasses import replace

import pytest
import torch

from groundup.inference import Engine, SamplingParams
from groundup.inference.decode import CompiledDecoder
from groundup.model import AttentionConfig, LatentAttentionConfig
from groundup.tokenizer import Tokenizer
from tests.inference.decode.test_decoder import MIXERS, config, shaken

PROMPTS = ["the cat", "a bat and a rat sat on the mat, and the cat sat on the hat of the bat " * 2, "that was", "x"]


@pytest.fixture(scope="module", params=MIXERS)
def model(request):
    tokenizer = Tokenizer.train_from_iterator([" ".join(PROMPTS)], 290, special_tokens=["<|endoftext|>"])
    small = config(MIXERS[request.param])
    return shaken(replace(small, vocab_size=tokenizer.vocab_size, context_length=256)), tokenizer


def engine(model, weights, **options):
    return Engine(*model, decoder=functools.partial(CompiledDecoder.build, weights=weights), **options)


def logprobs(completion):
    return [token.logprob for token in completion.logprobs]


SETTINGS = {
    "as it is": {},
    "cut prompts": {"step_tokens": 7},
    "few pages": {"batch_size": 4, "cache_tokens": 96, "prefix_cache": False},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_greedy_answers_are_those_of_torch(model, setting, caplog):
    compiled, plain = engine(model, "fp32", **SETTINGS[setting]), Engine(*model)
    compiled.end_ids = plain.end_ids = set()  # or some answers are too short to fill the pages
    for _ in range(2):  # the second time with known beginnings
        found = compiled.generate(PROMPTS, max_tokens=24, temperature=0, logprobs=1)
        expected = plain.generate(PROMPTS, max_tokens=24, temperature=0, logprobs=1)
        assert [c.tokens for c in found] == [c.tokens for c in expected]
        for mine, theirs in zip(found, expected, strict=True):
            assert logprobs(mine) == pytest.approx(logprobs(theirs), abs=1e-4)
    assert compiled.core.execution.fast is not None and not any("through torch" in text for text in caplog.messages)
    stats = compiled.stats()
    assert (stats.preemptions > 0) == (setting == "few pages")
    paged = isinstance(model[0].config.block(0).mixer, AttentionConfig | LatentAttentionConfig)
    assert (stats.cached_prompt_tokens > 0) == (setting != "few pages" and paged)


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_an_answer_has_the_same_bits_in_any_company(model, weights):
    options = dict(max_tokens=12, temperature=1.0, seed=3, logprobs=2)
    alone = [engine(model, weights, prefix_cache=False).generate(prompt, **options) for prompt in PROMPTS]
    for settings in (
        dict(),
        dict(step_tokens=7),
        dict(batch_size=4, cache_tokens=256),
        dict(batch_invariant=True, step_tokens=11),
    ):
        assert engine(model, weights, **settings).generate(PROMPTS, **options) == alone


def test_greedy_answers_are_the_same_without_their_logits(model):
    options = dict(max_tokens=20, temperature=0)
    asked = engine(model, "bf16", step_tokens=50)
    asked.end_ids = set()
    plain = asked.generate(PROMPTS, **options)
    told = asked.generate(PROMPTS, **options, logprobs=1)
    assert [c.tokens for c in plain] == [c.tokens for c in told]
    mixed = asked.generate(PROMPTS, [SamplingParams(**options), SamplingParams(max_tokens=20, seed=1)] * 2)
    assert [c.tokens for c in mixed[::2]] == [c.tokens for c in plain[::2]]


def test_a_broken_model_is_told_as_with_logits(model):
    built = copy.deepcopy(model[0])
    with torch.no_grad():
        built.final_norm.weight.fill_(torch.nan)
    broken = engine((built, model[1]), "bf16")
    for options in (dict(logprobs=0), dict(logprobs=1)):
        requests = [broken.submit(prompt, SamplingParams(max_tokens=3, temperature=0, **options)) for prompt in PROMPTS]
        while broken.has_work:
            broken.step()
        assert [r.finish_reason for r in requests] == ["error"] * 4
        assert all("NaN or infinite (rows [0])" in str(r.error) for r in requests)
