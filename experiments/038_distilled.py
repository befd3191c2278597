"""Entry 038: does a student that learns from a teacher's cached top-k logits beat one that learns from the text alone?

    python experiments/038_distilled.py FOLDER [--seeds 3] [--k 32] [--teacher-steps 1000] [--steps 400] [--threads 1]

A teacher of five layers is trained on the bundled State of the Union addresses but every tenth, its top k of each token
that students will see are written once (`write_teacher_logits`), and students of a quarter of its size are trained on
the same batches in the same order: on the tokens alone, on the teacher alone, on half of each. Seeds change
initialisation and draws. Scored in bits per byte on held-out addresses. Goes on where it was stopped. Prints a table,
ends with a JSON line and writes that to 038_distilled.jsonl.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from groundup import bundled, optim, presets
from groundup.compression.distill import distillation
from groundup.compression.teacher_logits import TeacherLogits
from groundup.compression.teacher_writing import write_teacher_logits
from groundup.corpus.reading import read_documents
from groundup.data.batch import Batch
from groundup.device import environment
from groundup.evaluation import bits_per_byte
from groundup.files import read_json, write_atomic, write_json
from groundup.model import Transformer
from groundup.model.pretrained import load_pretrained, save_pretrained
from groundup.tokenizer import Tokenizer
from groundup.train import next_token, precision, train

OUT = Path(__file__).with_suffix(".jsonl")
HELD_OUT, ROWS, CONTEXT, VOCAB = 10, 16, 128, 1024
SCORED, SCORED_CHARACTERS = 20, 4000
HARD = {"text alone": None, "teacher alone": 0.0, "half of each": 0.5}


def teacher_model(vocab_size: int) -> Transformer:
    return Transformer(
        presets.llama(
            vocab_size=vocab_size, d_model=192, num_layers=5, num_heads=6, num_kv_heads=2, context_length=CONTEXT
        )
    )


def student_model(vocab_size: int) -> Transformer:
    return Transformer(
        presets.llama(
            vocab_size=vocab_size, d_model=96, num_layers=3, num_heads=3, num_kv_heads=1, context_length=CONTEXT
        )
    )


def draws(ids: torch.Tensor, steps: int, seed: int) -> Iterator[Batch]:
    """Windows of the training text, at random."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(ids) - CONTEXT - 1, (ROWS, 1), generator=generator)
        yield {"tokens": ids[starts + torch.arange(CONTEXT + 1)]}


def fit(model: Transformer, source: Any, objective: Any, steps: int, rate: float, **options: Any) -> float:
    """Train; the seconds that it took."""
    precision.apply(model, "bf16")
    optimizer = optim.make_optimizer("muon_adamw", model, lr=0.15 * rate, muon_lr=rate)
    began = time.monotonic()
    run = train(
        model, source, objective, optimizer, steps,
        schedule=optim.cosine(steps // 10, steps, final=0.1), progress=False, **options,
    )  # fmt: skip
    if run.stopped_by == "interrupt":
        raise KeyboardInterrupt
    precision.apply(model.eval(), "fp32")
    return time.monotonic() - began


def trained_teacher(folder: Path, tokenizer: Tokenizer, ids: torch.Tensor, steps: int, rate: float) -> Transformer:
    if not (folder / "teacher" / "config.json").is_file():
        model = teacher_model(tokenizer.vocab_size)
        model.init_weights(7)
        source = draws(ids, steps, 7)
        fit(model, source, next_token, steps, rate, run_dir=folder / "run", checkpoint_every=50, keep=1, resume=True)
        tokenizer.save(folder / "run")
        save_pretrained(model, folder / "run", folder / "teacher")
    return load_pretrained(folder / "teacher")


def student(way: str, seed: int, steps: int, rate: float, ids: torch.Tensor, logits: TeacherLogits) -> Any:
    """(a trained student, seconds)."""
    hard = HARD[way]
    model = student_model(logits.vocab_size)
    model.init_weights(seed)
    source = draws(ids, steps, seed)
    if hard is None:
        return model, fit(model, source, next_token, steps, rate)
    return model, fit(model, logits.beside(source), distillation(logits, hard=hard), steps, rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--teacher-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only-teacher", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = options.folder
    documents = [document.text for document in read_documents(bundled.path())]
    texts = [text for number, text in enumerate(documents) if number % HELD_OUT]
    held_out = [text[:SCORED_CHARACTERS] for text in documents[::HELD_OUT][:SCORED]]
    tokenizer = Tokenizer.train_from_iterator(texts, VOCAB, special_tokens=["<|endoftext|>"])
    ids = torch.tensor([token for text in texts for token in [*tokenizer.encode(text), tokenizer.end_of_text]])
    teacher = trained_teacher(folder, tokenizer, ids, options.teacher_steps, options.rate)
    score = bits_per_byte(teacher, tokenizer, held_out).bits_per_byte
    print(
        f"teacher: {score:.4f} bits per byte, {sum(p.numel() for p in teacher.parameters()):,} parameters", flush=True
    )
    if options.only_teacher:
        return
    rows = []
    for seed in range(options.seeds):
        batches = list(draws(ids, options.steps, seed))
        logits = write_teacher_logits(teacher, batches, folder / f"logits-{seed}", k=options.k, tokenizer=tokenizer,
                                      progress=lambda done, total: print(f"\r{done}/{total}", end=""))  # fmt: skip
        for way in HARD:
            file = folder / f"{way.replace(' ', '-')}-{seed}.json"
            if not file.is_file():
                model, seconds = student(way, seed, options.steps, options.rate, ids, logits)
                found = bits_per_byte(model, tokenizer, held_out).bits_per_byte
                write_json(file, {"way": way, "seed": seed, "bits_per_byte": found, "seconds": seconds})
            rows.append(read_json(file))
            print(f"\n{rows[-1]}", flush=True)
    table = []
    for way in HARD:
        values = [row["bits_per_byte"] for row in rows if row["way"] == way]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        table.append({"way": way, "mean": statistics.fmean(values), "stdev": spread, "each": values})
        print("  ".join(f"{name}={value}" for name, value in table[-1].items()))
    size = sum(file.stat().st_size for file in (folder / "logits-0").iterdir())
    result = {"experiment": "038_distilled", "teacher": score, "rows": table, "k": options.k, "cache_bytes": size}
    result |= {"tokens": options.steps * ROWS * CONTEXT, "teacher_tokens": options.teacher_steps * ROWS * CONTEXT}
    result |= {"rate": options.rate, "text_tokens": len(ids), "environment": environment()}
    write_atomic(OUT, json.dumps(result) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
