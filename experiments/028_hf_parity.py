"""Entry 028: does the engine say what Hugging Face's transformers says, on a real model?

    python experiments/028_hf_parity.py GGUF [--prompts 100] [--tokens 24] [--settings alone together ...]

The weights of a GGUF file (SmolLM2-135M-Instruct) are dequantised into both, in float32. Each prompt is answered
greedily by transformers' generate, by the engine alone, and by the engine in random batches with the prefix cache,
cut prompts and preemption on and off. Prints a line per setting, and a JSON line at the end with how many answers are
equal. Where one differs, the gap between the two best logits at the first difference is given: float32 sums in another
order move logits by some 1e-5, and a gap of that size is a tie.
"""

import argparse
import json
import random
import tempfile
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from groundup.inference import Engine, SamplingParams
from groundup.model import Transformer
from groundup.model.gguf import load_gguf
from groundup.model.pretrained import save_pretrained
from groundup.tokenizer import Tokenizer

SETTINGS: dict[str, dict[str, Any]] = {
    "alone": {"batch_size": 1, "prefix_cache": False},
    "together": {"batch_size": 16, "prefix_cache": False},
    "prefix_cache": {"batch_size": 16},
    "cut_prompts": {"batch_size": 16, "step_tokens": 48},
    "preempted": {"batch_size": 16, "cache_tokens": 512},
    "preempted_no_prefix_cache": {"batch_size": 16, "cache_tokens": 512, "prefix_cache": False, "step_tokens": 48},
}
QUESTIONS = (
    "What is {}?", "Tell me a story about {}.", "Write a short poem on {}.", "Why do people care about {}?",
    "Explain {} to a child, in plain words, with an example from daily life.", "List three facts about {}.",
)  # fmt: skip
THINGS = (
    "rain", "the moon", "bread", "a lighthouse", "prime numbers", "gravity", "old maps", "the sea", "a library",
    "glass", "bees", "the number zero", "salt", "winter", "a clock", "rivers", "the printing press", "silence",
)  # fmt: skip
EARLIER = "You are a helpful assistant who answers in full sentences and does not make things up.\n\n"


def prompts(count: int, seed: int) -> list[str]:
    """Questions of random length and order; half of them share their beginning."""
    rng = random.Random(seed)
    asked = []
    for i in range(count):
        questions = [rng.choice(QUESTIONS).format(rng.choice(THINGS)) for _ in range(rng.choice([1, 1, 2, 5]))]
        asked.append(("" if i % 2 else EARLIER) + " ".join(questions) + "\n")
    return asked


def hugging_face(model: Transformer, texts: list[list[int]], tokens: int, ends: list[int]) -> list[list[int]]:
    """What transformers' Llama with these weights answers to each prompt by itself."""
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, None, folder)
        theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    for ids in texts:
        settings = {"do_sample": False, "max_new_tokens": tokens, "eos_token_id": ends or None, "pad_token_id": 0}
        answers.append(theirs.generate(torch.tensor([ids]), **settings)[0, len(ids) :].tolist())
    return answers


@torch.no_grad()
def gap(model: Transformer, ids: list[int], ours: list[int], theirs: list[int]) -> float:
    """Between the two tokens' logits where the answers part."""
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    if at is None:
        return float("inf")  # one goes on where the other ends
    logits = model(torch.tensor([ids + ours[:at]]))[0, -1]
    return float((logits[ours[at]] - logits[theirs[at]]).abs())


def compare(path: str, count: int, tokens: int, names: list[str], seed: int) -> dict[str, Any]:
    """Equal answers of each setting, with the gaps where they differ."""
    model, tokenizer = load_gguf(path).eval(), Tokenizer.load(path)
    texts = [tokenizer.encode(text) for text in prompts(count, seed)]
    began = time.perf_counter()
    ends = sorted(Engine(model, tokenizer).end_ids)
    expected = hugging_face(model, texts, tokens, ends)
    print(f"transformers: {count} answers in {time.perf_counter() - began:.0f} s", flush=True)
    found: dict[str, Any] = {"prompts": count, "tokens": tokens, "prompt_tokens": sum(map(len, texts))}
    params = SamplingParams(temperature=0, max_tokens=tokens)
    for name in names:
        engine, began = Engine(model, tokenizer, **SETTINGS[name]), time.perf_counter()
        order = random.Random(seed).sample(range(count), count)
        ours = dict(zip(order, engine.generate([texts[i] for i in order], params), strict=True))
        apart = [i for i in range(count) if ours[i].tokens != expected[i]]
        gaps = [gap(model, texts[i], ours[i].tokens, expected[i]) for i in apart]
        stats, seconds = engine.stats(), round(time.perf_counter() - began, 1)
        found[name] = {
            "equal": count - len(apart), "gaps": gaps, "seconds": seconds, "preemptions": stats.preemptions,
            "cached_prompt_tokens": stats.cached_prompt_tokens, "pages_used_after": stats.pages_used,
        }  # fmt: skip
        print(name, found[name], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(compare(options.gguf, options.prompts, options.tokens, options.settings, options.seed)))


if __name__ == "__main__":
    main()
