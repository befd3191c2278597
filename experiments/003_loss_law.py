"""Entry 003 of LOG.md: what does the planned recipe reach at which size, with how much text, read how often?

    python experiments/003_loss_law.py run TEXT... [--only NAME]     trains what is not in the results yet
    python experiments/003_loss_law.py fit                           the law's constants from the results

Every case trains for a fixed number of tokens, so a busy machine changes its time and not its result. A third part
of each text, parted from the training text by document and never trained on, is what is scored.
"""

import argparse
import json
import math
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares

from groundup import data
from groundup.accounting.hardware import probe
from groundup.accounting.law import BUILD_LAW
from groundup.accounting.plan import TextFacts, Wishes, plan
from groundup.build.measure import baselines
from groundup.build.pretrain import make_loader, make_optimizer, prepare
from groundup.build.text import _up_to, difficulty
from groundup.corpus import read_documents, split_held_out
from groundup.evaluation import bits_per_byte
from groundup.model import Transformer
from groundup.model.identity_start import start_as_identity
from groundup.optim import warmup_stable_decay
from groundup.tokenizer import Tokenizer
from groundup.tokenizer.chat import CONTROL_TOKENS
from groundup.train import objectives, train

RESULTS = Path(__file__).with_suffix(".jsonl")
NAMES = {"books_train": "books", "state_of_the_union": "sotu"}
# Of experiments 001 and 002: the recipe's own rows, on the build's held-out text; the default build counts most.
SOTU_BYTES = 10.15e6
EARLIER = [
    ("sotu 256x4 (001)", 5.31e6, SOTU_BYTES, 1.6 / 2.36, 1.318, 1.345, 2.0),
    ("sotu 256x4 (001)", 5.31e6, SOTU_BYTES, 3.2 / 2.36, 1.318, 1.232, 2.0),
    ("sotu 256x4 (001)", 5.31e6, SOTU_BYTES, 6.5 / 2.36, 1.318, 1.163, 2.0),
    ("build 256x4 (002)", 5.31e6, SOTU_BYTES, 7.0 / 2.5, 1.380, 1.205, 3.0),
    ("build 256x4 (002)", 5.31e6, SOTU_BYTES, 4.4 / 2.5, 1.380, 1.244, 3.0),
]
SCORED_BYTES = 150_000
MOST_BYTES = 14_000_000


@dataclass(frozen=True)
class Case:
    text: str
    d_model: int
    num_layers: int
    tokens: int
    vocab_size: int = 4096
    batch_tokens: int = 4096
    dropout: float = 0.0
    warmup: int = 20
    weight_decay: float = 0.05
    train_bytes: int = 0  # 0: all

    @property
    def key(self) -> str:
        return json.dumps(asdict(self))


def sweep(text: str, shapes: list[tuple[int, int]], tokens: list[float], **other) -> list[Case]:
    return [Case(text, d, n, int(1e6 * t), **other) for t in tokens for d, n in shapes]


CASES = {
    "short": [c for b in (512, 1024, 2048, 4096) for c in sweep("sotu", [(128, 4)], [0.1, 0.3], batch_tokens=b)],
    "short-books": [
        c for b in (1024, 2048) for c in sweep("books", [(128, 4)], [0.1, 0.3], batch_tokens=b, train_bytes=10_000_000)
    ],
    "sizes": sweep("sotu", [(128, 4), (256, 4), (384, 6)], [0.4, 1.2])
    + sweep("sotu", [(128, 2), (192, 4)], [0.4])
    + sweep("sotu", [(256, 4)], [3.6]),
    "books": sweep("books", [(128, 4), (256, 4)], [0.4, 1.2], train_bytes=10_000_000)
    + sweep("books", [(384, 6)], [0.4], train_bytes=10_000_000),
    "shake": [
        c
        for drop in (0.0, 0.15)
        for c in sweep("tinyshakespeare", [(192, 4)], [1, 2, 4], vocab_size=1024, dropout=drop)
    ],
    "shake-drop": sweep("tinyshakespeare", [(256, 4)], [4], vocab_size=1024, dropout=0.3)
    + sweep("tinyshakespeare", [(192, 4)], [8], vocab_size=1024, dropout=0.3)
    + sweep("tinyshakespeare", [(192, 4)], [4], vocab_size=1024, weight_decay=0.5),
    "tiny": [
        c
        for drop in (0.0, 0.3)
        for c in sweep("tinyshakespeare", [(128, 4)], [0.6, 1.8], vocab_size=512, dropout=drop, train_bytes=300_000)
    ],
}


def load(path: Path) -> tuple[list[str], list[str]]:
    """Training and validation documents: the build's held-out part is cut off first and left alone."""
    documents, _ = _up_to(read_documents([path]), MOST_BYTES)
    build = split_held_out(documents, min(0.05, 1e6 / sum(len(d.text) for d in documents)))
    third = split_held_out(build.train, 0.05, seed=1)
    return [d.text for d in third.train], [d.text for d in third.held_out]


def head(texts: list[str], most: int) -> list[str]:
    kept: list[str] = []
    for text in texts:
        kept.append(text[: most - sum(map(len, kept))])
        if sum(map(len, kept)) >= most:
            break
    return kept


def run_case(case: Case, training: list[str], scored: list[str], folder: Path, machine) -> dict:
    training = head(training, case.train_bytes) if case.train_bytes else training
    shards = folder / f"{case.text}-{case.vocab_size}-{case.train_bytes}"
    if not (shards / "tokenizer.json").exists():
        tokenizer = Tokenizer.train_from_iterator(training, case.vocab_size, ["<|endoftext|>", *CONTROL_TOKENS])
        data.write_shards(training, tokenizer, shards / "train", overwrite=True)
        tokenizer.save(shards)
        scores = baselines(shards / "train", scored, tokenizer)
        (shards / "baselines.json").write_text(json.dumps({n: b["bits_per_byte"] for n, b in scores.items()}))
    tokenizer = Tokenizer.load(shards)
    train_bytes = sum(len(t.encode()) for t in training)
    facts = TextFacts(train_bytes, 100_000, len(training), difficulty(training))
    wishes = Wishes(case.vocab_size, case.d_model, case.num_layers, 256, case.batch_tokens // 256)
    made = replace(plan(facts, machine, 600.0, wishes)[0], weight_decay=case.weight_decay)
    session = prepare(made, machine, 0, None)
    start_as_identity(session.model, 0)
    session.model.dropout = case.dropout
    steps = max(1, case.tokens // case.batch_tokens)
    points: list[dict] = []

    def score(model) -> float:
        twin = Transformer(made.model)
        twin.load_state_dict(model.state_dict())
        return bits_per_byte(twin, tokenizer, head(scored, SCORED_BYTES)).bits_per_byte

    done = train(
        session.model, make_loader(shards / "train", made, 0), objectives.next_token,
        make_optimizer(session.model, made), steps, schedule=warmup_stable_decay(case.warmup, steps, 0.5),
        every={max(1, steps // 8): lambda step, model, r: points.append({"step": step, "bits": score(model)})},
        progress=False,
    )  # fmt: skip
    return {
        "case": asdict(case), "parameters": made.parameters, "steps": steps, "epochs": done.epochs,
        "train_bytes": train_bytes, "bytes_per_token": data.ShardSet.open(shards / "train").text_bytes
        / data.ShardSet.open(shards / "train").num_tokens,
        "zstd": facts.zstd_bits_per_byte, "baselines": json.loads((shards / "baselines.json").read_text()),
        "training_nats": sum(done.losses[-20:]) / len(done.losses[-20:]), "curve": points,
        "bits_per_byte": score(session.model), "tokens_per_second": done.measured()["tokens_per_second"],
    }  # fmt: skip


def run(paths: list[Path], only: str | None) -> None:
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    done = {json.dumps(json.loads(line)["case"]) for line in lines}
    texts = {NAMES.get(name := path.name.split(".")[0], name): path for path in paths}
    machine, loaded = probe(torch.device("cpu"), 3.0), {}
    torch.set_num_threads(machine.threads)
    cases = [(name, case) for name, cases in CASES.items() for case in cases if only in (None, name)]
    with tempfile.TemporaryDirectory() as folder:
        for name, case in cases:
            if case.key in done or case.text not in texts:
                continue
            if case.text not in loaded:
                loaded[case.text] = load(texts[case.text])
            result = {"sweep": name, **run_case(case, *loaded[case.text], Path(folder), machine)}
            with RESULTS.open("a") as out:
                out.write(json.dumps(result) + "\n")
            best = min(point["bits"] for point in result["curve"])
            print(f"{case}: {result['bits_per_byte']:.3f}, best {best:.3f}", flush=True)


def points() -> list[tuple[Any, ...]]:
    """(name, parameters, unique bytes, passes, 5-gram's bits per byte, bits per byte, weight) of every sound row."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    made = []
    for row in rows:
        case = row["case"]
        by_heart = case["text"] == "tinyshakespeare" and (row["epochs"] > 6) != (case["dropout"] > 0)
        if case["batch_tokens"] != 4096 or by_heart or case["weight_decay"] != 0.05:
            continue
        passes = case["tokens"] * row["bytes_per_token"] / row["train_bytes"]
        name = f"{case['text']} {case['d_model']}x{case['num_layers']}"
        ngram = row["baselines"]["kneser_ney_5"]
        made.append((name, row["parameters"], row["train_bytes"], passes, ngram, row["bits_per_byte"], 1.0))
    return made + EARLIER


def fit() -> None:
    """Least squares of the logarithm, with the published worth of repeats and the floor held fixed."""
    rows = points()

    def predicted(t: np.ndarray, *row: float) -> float:
        parameters, unique, passes, ngram = row
        size_exponent, data_exponent, ngram_exponent = t[2:]
        law = replace(
            BUILD_LAW, size_scale=math.exp(t[0]), data_scale=math.exp(t[1]), size_exponent=size_exponent,
            data_exponent=data_exponent,
        )  # fmt: skip
        hardness = (ngram / BUILD_LAW.reference_ngram) ** ngram_exponent
        return law.bits_per_byte(parameters, unique, passes, hardness)

    def errors(t: np.ndarray) -> list[float]:
        return [weight * math.log(predicted(t, *row) / y) for _, *row, y, weight in rows]

    found = least_squares(errors, [13.4, 15.4, 0.2, 0.16, 0.8], loss="soft_l1", f_scale=0.03)
    for name, *row, y, _ in rows:
        guess = predicted(found.x, *row)
        print(f"{name:22} {row[2]:5.2f} passes  measured {y:.3f}  law {guess:.3f}  {100 * (guess / y - 1):+.1f} %")
    scale = [f"{math.exp(x):.4g}" for x in found.x[:2]]
    rms = math.sqrt(np.mean([math.log(predicted(found.x, *row) / y) ** 2 for _, *row, y, _ in rows]))
    print(f"size_scale, data_scale {scale}; exponents of size, data, 5-gram {found.x[2:].round(4)}; rms {rms:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "fit"])
    parser.add_argument("texts", nargs="*", type=Path)
    parser.add_argument("--only")
    args = parser.parse_args()
    run(args.texts, args.only) if args.what == "run" else fit()
