"""Entry 035: what do a model's own multi-token modules save when they guess from caches of their own?

    python experiments/035_multi_token.py [--steps 600] [--rounds 3] [--threads 1] [--weights FILE]

A model of six layers with two modules is trained on the bundled State of the Union addresses but every tenth, and
continues the beginnings of held-out ones, greedily and at temperature 0.8: plainly, and with one and two guesses a
pass, in turns. Answers have to equal the plain ones. FILE keeps the weights between calls. Prints a table, ends with a
JSON line and writes that to 035_multi_token.jsonl.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from groundup import bundled, presets
from groundup.corpus.reading import read_documents
from groundup.device import environment
from groundup.files import write_atomic
from groundup.inference import Engine, SamplingParams
from groundup.inference.speculative import MultiTokenProposer
from groundup.model import MultiTokenConfig, Transformer
from groundup.optim import AdamW
from groundup.tokenizer import Tokenizer
from groundup.train import objectives, train

OUT = Path(__file__).with_suffix(".jsonl")
HELD_OUT, ROWS, CONTEXT = 10, 16, 128
PROMPTS, PROMPT_TOKENS, NEW = 8, 64, 96
GUESSES = (0, 1, 2)
TEMPERATURES = (0.0, 0.8)


def new_model(vocab_size: int) -> Transformer:
    config = presets.llama(
        vocab_size=vocab_size, d_model=192, num_layers=6, num_heads=6, num_kv_heads=2, context_length=512
    )
    return Transformer(replace(config, multi_token=MultiTokenConfig(depth=2)))


def batches(ids: torch.Tensor) -> Iterator[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        starts = torch.randint(len(ids) - CONTEXT - 1, (ROWS, 1), generator=generator)
        yield {"tokens": ids[starts + torch.arange(CONTEXT + 1)]}


def trained(tokenizer: Tokenizer, texts: list[str], steps: int) -> Transformer:
    ids = torch.tensor([token for text in texts for token in tokenizer.encode(text)])
    model = new_model(tokenizer.vocab_size)
    train(model, batches(ids), objectives.multi_token, AdamW(model.parameters(), lr=2e-3), steps, progress=False)
    return model


class Timed(MultiTokenProposer):
    """Adds up the seconds of proposing."""

    seconds = 0.0

    def propose(self, request: Any, count: int) -> list[int]:
        started = time.perf_counter()
        guesses = super().propose(request, count)
        self.seconds += time.perf_counter() - started
        return guesses


def timed(engine: Engine, prompt: list[int], params: SamplingParams) -> tuple[list[int], float]:
    """An answer and the seconds per token from its first to its last."""
    request = engine.submit(prompt, params)
    while not request.tokens:
        engine.step()
    started, first = time.perf_counter(), len(request.tokens)
    while request.finish_reason is None:
        engine.step()
    if request.failure is not None:
        raise request.failure
    return request.tokens, (time.perf_counter() - started) / max(1, len(request.tokens) - first)


def race(model: Transformer, tokenizer: Tokenizer, prompts: list[list[int]], temperature: float, rounds: int) -> Any:
    """A row per number of guesses."""
    proposers = {count: Timed(model) for count in GUESSES if count}
    engines = {
        count: Engine(model, tokenizer, batch_size=1, proposer=proposers.get(count), draft_tokens=max(count, 1))
        for count in GUESSES
    }
    seconds: dict[int, list[list[float]]] = {count: [[] for _ in prompts] for count in GUESSES}
    equal = True
    for _ in range(rounds):
        for number, prompt in enumerate(prompts):
            params = SamplingParams(temperature=temperature, seed=number, max_tokens=NEW)
            answers = {count: timed(engine, prompt, params) for count, engine in engines.items()}
            equal &= all(tokens == answers[0][0] for tokens, _ in answers.values())
            for count, (_, each) in answers.items():
                seconds[count][number].append(each)
    plain = [statistics.median(each) for each in seconds[0]]
    for count, engine in engines.items():
        ours, stats = [statistics.median(each) for each in seconds[count]], engine.stats()
        speedups = [a / b for a, b in zip(plain, ours, strict=True)]
        quartiles = statistics.quantiles(speedups, n=4)
        spent = proposers[count].seconds if count else 0.0
        passes = max(1, stats.drafted_tokens // max(1, count))
        yield {
            "temperature": temperature,
            "guesses": count,
            "tokens_per_second": round(1 / statistics.median(ours), 1),
            "speedup_median": round(statistics.median(speedups), 3),
            "speedup_quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
            "acceptance_rate": round(stats.acceptance_rate, 3),
            "tokens_per_pass": round(stats.generated_tokens / (stats.generated_tokens - stats.accepted_tokens), 3),
            "propose_ms": round(1e3 * spent / passes, 3) if count else 0.0,
            "equal": equal,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weights", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    documents = [document.text for document in read_documents(bundled.path())]
    texts = [text for number, text in enumerate(documents) if number % HELD_OUT]
    tokenizer = Tokenizer.train_from_iterator(texts, 1024, special_tokens=["<|endoftext|>"])
    if options.weights is not None and options.weights.exists():
        model = new_model(tokenizer.vocab_size)
        model.load_state_dict(load_file(options.weights))
        options.steps = None  # as many as whoever made the file chose
    else:
        model = trained(tokenizer, texts, options.steps)
        if options.weights is not None:
            save_file(model.state_dict(), options.weights)
    if not options.rounds:
        return
    prompts = [tokenizer.encode(text[:1000])[:PROMPT_TOKENS] for text in documents[::HELD_OUT][:PROMPTS]]
    rows = [row for t in TEMPERATURES for row in race(model, tokenizer, prompts, t, options.rounds)]
    for row in rows:
        print("  ".join(f"{name}={value}" for name, value in row.items()))
    result = {"experiment": "035_multi_token", "rows": rows, "steps": options.steps, "prompts": len(prompts)}
    result |= {"new_tokens": NEW, "rounds": options.rounds, "threads": options.threads, "environment": environment()}
    write_atomic(OUT, json.dumps(result) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
