"""Entry 028: does the engine say what Hugging Face's transformers says, on a real model?

    python experiments/028_hf_parity.py GGUF --kept FOLDER [--prompts 100] [--tokens 32] [--settings NAME ...]

The weights of a GGUF file (SmolLM2-135M-Instruct) are dequantised into both, in float32. Each prompt is answered
greedily by transformers' generate, once: its answers are kept in FOLDER, as is each setting that is through, and
another call goes on from there. The engine answers the prompts one by one, and in random batches: at each step a
random number of them arrives, in random order. Each with the prefix cache on and off, with whole prompts and with
steps of 24 tokens, and batches with enough pages and with so few that preemption happens, which is checked; then all
of that once with the compiled step. Prints a line per setting, and a JSON line at the end.

Where an answer differs, the gap between the two tokens' logits at the first difference is given, from one pass of the
model over all tokens: float32 sums in another order move logits by some 1e-5, and a gap of that size is a tie.
"""

import argparse
import itertools
import json
import random
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from groundup.inference import Engine, SamplingParams
from groundup.inference.decode import CompiledDecoder
from groundup.model import Transformer
from groundup.model.gguf import load_gguf
from groundup.model.pretrained import save_pretrained
from groundup.tokenizer import Tokenizer

FEW_PAGES = 384  # tokens: sixteen prompts and answers of some sixty do not fit
SMALL_STEP = 24
QUESTIONS = (
    "What is {}?", "Tell me a story about {}.", "Write a short poem on {}.", "Why do people care about {}?",
    "Explain {} to a child, in plain words, with an example from daily life.", "List three facts about {}.",
)  # fmt: skip
THINGS = (
    "rain", "the moon", "bread", "a lighthouse", "prime numbers", "gravity", "old maps", "the sea", "a library",
    "glass", "bees", "the number zero", "salt", "winter", "a clock", "rivers", "the printing press", "silence",
)  # fmt: skip
EARLIER = "You are a helpful assistant who answers in full sentences and does not make things up.\n\n"


def settings() -> dict[str, dict[str, Any]]:
    """The engine's options by name. One sequence alone is never preempted, so that needs enough pages only."""
    found = {}
    for batch, prefix, step, pages in itertools.product(("alone", "batches"), ("prefix", "plain"), ("whole", "cut"),
                                                        ("enough", "few")):  # fmt: skip
        if batch == "alone" and pages == "few":
            continue
        options: dict[str, Any] = {"batch_size": 1 if batch == "alone" else 16, "prefix_cache": prefix == "prefix"}
        options |= {"step_tokens": SMALL_STEP} if step == "cut" else {}
        options |= {"cache_tokens": FEW_PAGES} if pages == "few" else {}
        found[f"{batch} {prefix} {step} {pages}"] = options
    compiled = {"decoder": partial(CompiledDecoder.build, weights="fp32")}
    return found | {f"{name} compiled": options | compiled for name, options in found.items()}


SETTINGS = settings()


def prompts(count: int, seed: int) -> list[str]:
    """Questions of random length and order; half of them share their beginning."""
    rng = random.Random(seed)
    asked = []
    for i in range(count):
        questions = [rng.choice(QUESTIONS).format(rng.choice(THINGS)) for _ in range(rng.choice([1, 1, 2, 5]))]
        asked.append(("" if i % 2 else EARLIER) + " ".join(questions) + "\n")
    return asked


def hugging_face(model: Transformer, texts: list[list[int]], tokens: int, ends: list[int], kept: Path) -> list[Any]:
    """What transformers' Llama with these weights answers to each prompt by itself; those in `kept` are taken."""
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    known = {(tuple(line["prompt"]), line["tokens"]): line["answer"] for line in lines}
    if missing := [ids for ids in texts if (tuple(ids), tokens) not in known]:
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(model, None, folder)
            theirs: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        options = {"do_sample": False, "max_new_tokens": tokens, "eos_token_id": ends or None, "pad_token_id": 0}
        with kept.open("a") as file:
            for ids in missing:
                answer = theirs.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()
                print(json.dumps({"prompt": ids, "tokens": tokens, "answer": answer}), file=file, flush=True)
                known[tuple(ids), tokens] = answer
    return [known[tuple(ids), tokens] for ids in texts]


def answers(engine: Engine, texts: list[list[int]], params: SamplingParams, seed: int) -> list[list[int]]:
    """Each prompt's answer, the prompts arriving at random while others run."""
    rng = random.Random(seed)
    waiting = rng.sample(range(len(texts)), len(texts))
    requests: dict[int, Any] = {}
    while waiting or engine.has_work:
        for place in [waiting.pop() for _ in range(min(len(waiting), rng.choice([0, 0, 0, 1, 2, 6])))]:
            requests[place] = engine.submit(texts[place], params)
        engine.step()
    return [requests[place].tokens for place in range(len(texts))]


@torch.no_grad()
def gap(model: Transformer, ids: list[int], ours: list[int], theirs: list[int]) -> float:
    """Between the two tokens' logits where the answers part; infinite where one goes on and the other ends."""
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    if at is None:
        return float("inf")
    logits = model(torch.tensor([ids + ours[:at]]))[0, -1]
    return float((logits[ours[at]] - logits[theirs[at]]).abs())


def compare(engine: Engine, texts: list[list[int]], expected: list[Any], tokens: int, seed: int) -> dict[str, Any]:
    """How many answers of one setting are equal, and the gaps of those that are not."""
    began = time.perf_counter()
    ours = answers(engine, texts, SamplingParams(temperature=0, max_tokens=tokens), seed)
    seconds, stats = round(time.perf_counter() - began, 1), engine.stats()
    apart = [i for i in range(len(texts)) if ours[i] != expected[i]]
    return {
        "equal": len(texts) - len(apart), "of": len(texts),
        "gaps": {i: gap(engine.model, texts[i], ours[i], expected[i]) for i in apart},
        "preemptions": stats.preemptions, "cached_prompt_tokens": stats.cached_prompt_tokens, "steps": stats.steps,
        "pages_used_after": stats.pages_used, "seconds": seconds,
    }  # fmt: skip


def run(path: str, count: int, tokens: int, names: list[str], seed: int, kept: Path) -> dict[str, Any]:
    """All settings that are not through yet, and the whole result."""
    model, tokenizer = load_gguf(path).eval(), Tokenizer.load(path)
    texts = [tokenizer.encode(text) for text in prompts(count, seed)]
    kept.mkdir(parents=True, exist_ok=True)
    ends = sorted(Engine(model, tokenizer).end_ids)
    expected = hugging_face(model, texts, tokens, ends, kept / "transformers.jsonl")
    found: dict[str, Any] = {"prompts": count, "tokens": tokens, "seed": seed, "prompt_tokens": sum(map(len, texts)),
                             "answer_tokens": sum(map(len, expected))}  # fmt: skip
    for name in names:
        file = kept / f"{name.replace(' ', '_')}-{count}-{tokens}-{seed}.json"
        if not file.exists():
            line = compare(Engine(model, tokenizer, **SETTINGS[name]), texts, expected, tokens, seed)
            assert "few" not in name or line["preemptions"] > 0, f"{name}: nothing was preempted"
            file.write_text(json.dumps(line))
        found[name] = json.loads(file.read_text())
        print(name, found[name], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf")
    parser.add_argument("--kept", type=Path, required=True, help="folder for what is through, to go on from")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = run(given.gguf, given.prompts, given.tokens, given.settings, given.seed, given.kept)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
