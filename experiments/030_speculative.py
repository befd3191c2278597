"""Entry 030: how much faster is a summary when the tokens of the text are proposed as its next ones?

    python experiments/030_speculative.py MODEL.gguf [--tokens 96] [--rounds 3] [--threads 2] [--texts 2]
                                          [--decoder torch|fp32|bf16|int8|int4] [--out 030_speculative.jsonl]

MODEL is a chat model with its tokenizer, such as SmolLM2-135M-Instruct. It summarises the beginning of some of the
bundled State of the Union addresses, greedily, through torch in float32 or through the compiled step with weights of
a format; plain decoding and n-gram proposals of several lengths take turns. Every answer is compared with the plain
one, which it has to equal. Prints a table, ends with a JSON line and writes that to OUT.
"""

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from groundup import bundled
from groundup.corpus.reading import read_documents
from groundup.device import environment
from groundup.files import write_atomic
from groundup.inference import Engine, SamplingParams
from groundup.inference.decode import CompiledDecoder
from groundup.inference.speculative import NgramProposer
from groundup.model.source import Source, read_source
from groundup.tokenizer.template import ChatTemplate

OUT = Path(__file__).with_suffix(".jsonl")
ASK = "Summarize this text.\n\n"
NUMBERS = (60, 180, 20, 100, 140, 220, 40, 200)
CHARACTERS = 2_000
LEAST_ANSWER = 32
DRAFTS = (0, 4)
"""Proposed tokens per pass; 0 is plain decoding."""


def prompts_of(engine: Engine, count: int, params: SamplingParams) -> list[list[int]]:
    """The beginnings of some of the addresses, behind the task: the first `count` whose plain answer is long enough."""
    documents = [document.text for document in read_documents(bundled.path())]
    found: list[list[int]] = []
    for number in NUMBERS:
        prompt = engine.chat_prompt([{"role": "user", "content": ASK + documents[number][:CHARACTERS]}])
        if len(found) < count and len(engine.generate(prompt, params).tokens) >= LEAST_ANSWER:
            found.append(prompt)
    return found


def engine_of(source: Source, drafted: int, weights: str, threads: int) -> Engine:
    """Plain decoding, or with so many proposed tokens for a pass."""
    assert source.tokenizer is not None and source.template is not None, "MODEL needs a tokenizer and a chat template"
    template = ChatTemplate(source.template, **source.tokens)
    proposer = NgramProposer() if drafted else None
    return Engine(
        source.model,
        source.tokenizer,
        batch_size=1,
        cache_tokens=2_048,
        chat_template=template,
        end_ids=source.end_ids,
        proposer=proposer,
        draft_tokens=max(drafted, 1),
        decoder=None if weights == "torch" else partial(CompiledDecoder.build, weights=weights, threads=threads),
    )


def timed(engine: Engine, prompt: list[int], params: SamplingParams) -> tuple[list[int], float]:
    """An answer and the seconds from its first to its last token."""
    request = engine.submit(prompt, params)
    while not request.tokens:
        engine.step()
    start, first = time.perf_counter(), len(request.tokens)
    while request.finish_reason is None:
        engine.step()
    if request.failure is not None:
        raise request.failure
    seconds = time.perf_counter() - start
    return request.tokens, seconds / (len(request.tokens) - first)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts", type=int, choices=range(1, len(NUMBERS) + 1), default=2, metavar="COUNT")
    parser.add_argument("--decoder", choices=["torch", "fp32", "bf16", "int8", "int4"], default="torch")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source = read_source(options.model)
    params = SamplingParams(temperature=0, max_tokens=options.tokens)
    engines = {d: engine_of(source, d, options.decoder, options.threads) for d in DRAFTS}
    prompts = prompts_of(engines[0], options.texts, params)
    seconds: dict[int, list[list[float]]] = {drafted: [[] for _ in prompts] for drafted in DRAFTS}
    equal = True
    for _ in range(options.rounds):
        for number, prompt in enumerate(prompts):
            answers = []
            for drafted, engine in engines.items():
                tokens, per_token = timed(engine, prompt, params)
                seconds[drafted][number].append(per_token)
                answers.append(tokens)
            equal &= all(tokens == answers[0] for tokens in answers)
    rows = [row_of(drafted, engines[drafted], seconds) for drafted in DRAFTS]
    print("drafted  tokens/s  speedup  by text            accepted  tokens/pass")
    for row in rows:
        by_text = " ".join(f"{x:5.2f}" for x in row["speedup_by_text"])
        print(
            f"{row['drafted']:7d}  {row['tokens_per_second']:8.1f}  {row['speedup']:7.2f}  {by_text}"
            f"  {row['acceptance_rate']:8.2f}  {row['tokens_per_pass']:11.2f}"
        )
    lengths = [len(prompt) for prompt in prompts]
    result = {"experiment": "030_speculative", "model": options.model.name, "prompt_tokens": lengths, "rows": rows}
    result |= {"equal": equal, "tokens": options.tokens, "rounds": options.rounds, "threads": options.threads}
    result["decoder"] = options.decoder
    line = json.dumps(result | {"environment": environment()})
    write_atomic(options.out, line + "\n")
    print(line)


def row_of(drafted: int, engine: Engine, seconds: dict[int, list[list[float]]]) -> dict[str, Any]:
    """Medians over the rounds; the speed is that of all texts together."""
    ours = [statistics.median(each) for each in seconds[drafted]]
    plain = [statistics.median(each) for each in seconds[0]]
    stats = engine.stats()
    by_text = sorted(a / b for a, b in zip(plain, ours, strict=True))
    quartiles = statistics.quantiles(by_text, n=4) if len(by_text) > 1 else [by_text[0]] * 3
    return {
        "drafted": drafted,
        "tokens_per_second": round(len(ours) / sum(ours), 2),
        "speedup": round(sum(plain) / sum(ours), 3),
        "speedup_median": round(statistics.median(by_text), 3),
        "speedup_quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
        "speedup_by_text": [round(a / b, 3) for a, b in zip(plain, ours, strict=True)],
        "acceptance_rate": round(stats.acceptance_rate, 3),
        "tokens_per_pass": round(stats.generated_tokens / (stats.generated_tokens - stats.accepted_tokens), 3),
    }


if __name__ == "__main__":
    main()
