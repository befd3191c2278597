"""Greedy answers of a published model, held to transformers'; `experiments/028_hf_parity.py` takes 100 prompts."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from groundup.inference import Engine
from groundup.model.gguf import load_gguf
from groundup.model.pretrained import save_pretrained
from groundup.tokenizer import Tokenizer
from tests.model.models import path_of

EARLIER = "The lighthouse keeper wrote a letter every evening, and on Sundays he carried them all to the village. "
PROMPTS = (EARLIER + "One day", "What is rain?\n", EARLIER + "In winter, when the boats stayed in the harbour,")
TOKENS = 6


@pytest.mark.slow
def test_smollm2_answers_as_in_transformers(tmp_path):
    path = path_of("smollm2.gguf")
    model, tokenizer = load_gguf(path).eval(), Tokenizer.load(path)
    save_pretrained(model, None, tmp_path)
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    texts = [tokenizer.encode(text) for text in PROMPTS]
    expected = []
    for ids in texts:
        done = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=TOKENS, pad_token_id=0)
        expected.append(done[0, len(ids) :].tolist())
    few = {"page_size": 4, "step_tokens": 20}  # tokens of a step, and pages for all prompts but not for their answers
    for options, cached, preempted in (
        ({}, 16, 0),
        ({**few, "cache_tokens": 48}, 20, 1),
        ({**few, "cache_tokens": 68, "prefix_cache": False}, 0, 1),
        ({"batch_invariant": True}, 16, 0),
    ):
        engine = Engine(model, tokenizer, **options)
        done = engine.generate(texts, temperature=0, max_tokens=TOKENS)
        assert [completion.tokens for completion in done] == expected, options
        assert (engine.stats().cached_prompt_tokens, engine.stats().preemptions) == (cached, preempted), options
