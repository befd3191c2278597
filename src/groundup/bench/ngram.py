"""`groundup bench ngram`: tokens per second of training a Kneser-Ney model on one core, beside KenLM's lmplz.

Both get the same token ids: groundup as an array, lmplz as a file of numbers, a document in each line. lmplz ends by
writing an ARPA file (to nowhere, here); groundup with a model that answers. lmplz is found on the PATH.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from groundup.bench.race import Contest, Entry, Program, Setting, fastest
from groundup.bench.record import Record, checkout, load_average, print_table, save
from groundup.bench.tokenizer_corpus import prepare_corpus
from groundup.bench.tokenizer_turns import SEPARATOR
from groundup.model.ngram import split_documents
from groundup.tokenizer import Tokenizer

NAME, OURS, PEER = "ngram", "groundup", "KenLM"
COLUMNS = {"program": "program", "speed": "tokens/s", "spread": "IQR", "peak_gb": "peak GB", "note": ""}
HELD_OUT = 0.02  # of the tokens, from the end: scored, not trained on


def prepare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Token ids of the text in the form of each program: what the programs are told, and facts for the record."""
    corpus = prepare_corpus(options.text, folder, options.megabytes)
    tokenizer = Tokenizer.train(corpus.whole.path, options.vocab_size, [SEPARATOR])
    ids = tokenizer.encode_file(corpus.whole.path)[: options.tokens]
    training, held_out = np.split(ids, [round((1 - HELD_OUT) * len(ids))])
    np.save(folder / "training.npy", training)
    np.save(folder / "held_out.npy", held_out)
    end = tokenizer.end_of_text
    with open(folder / "training.txt", "w") as f:
        f.writelines(" ".join(map(str, d[d != end].tolist())) + "\n" for d in split_documents(training, end))
    return {
        "folder": str(folder),
        "order": options.order,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": end,
        "tokens": len(training),
        "corpus": corpus.facts,
    }


def programs(lmplz: str | None) -> dict[str, Program]:
    root = checkout()
    ours = {OURS: Program(Path(__file__).with_name("ngram_program.py"), "groundup")}
    peer = Program(root and root / "benchmarks" / "peers" / "ngram_lmplz.py", "subprocess")
    return ours | {PEER: peer} if lmplz else ours


def compare(told: dict[str, Any], entries: Sequence[Entry]) -> Record:
    """The record of a race: tokens per second, ours against lmplz where it ran."""
    ours, peer = (fastest([e for e in entries if e.setting.program == name]) for name in (OURS, PEER))
    assert ours is not None and ours.rates is not None
    tokens = told["tokens"]
    return Record(
        name=NAME,
        ours=ours.rates.median * tokens,
        peer=peer.rates.median * tokens if peer and peer.rates else None,
        peer_name=peer.setting.title if peer else None,
        ratio=ours.rates.median / peer.rates.median if peer and peer.rates else None,
        unit="tokens/s",
        device=ours.facts["environment"]["device"],
        rows=[_row(entry, tokens) for entry in entries],
        details={k: v for k, v in told.items() if k != "folder"}
        | {k: ours.facts[k] for k in ("ngrams", "model_bytes", "held_out_bits_per_token", "scored_tokens_per_second")}
        | {"measured": {e.setting.program: [r * tokens for r in e.rates.values] for e in entries if e.rates}},
        versions={k: v for e in entries for k, v in e.facts.get("versions", {}).items()},
        environment=ours.facts["environment"],
    )


def _row(entry: Entry, tokens: int) -> dict[str, Any]:
    return {
        "program": entry.setting.title,
        "speed": entry.rates and entry.rates.median * tokens,
        "spread": entry.rates and entry.rates.spread * tokens,
        "peak_gb": entry.peak_bytes and entry.peak_bytes / 1e9,
        "note": entry.failure or "",
    }


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"groundup bench {NAME}", description=main.__doc__)
    parser.add_argument("--text", nargs="+", type=Path, default=[], metavar="FILE", help="default: the bundled text")
    parser.add_argument("--megabytes", type=float, default=50.0, help="of the text, from its beginning (default 50)")
    parser.add_argument("--tokens", type=int, default=10_000_000, help="at most (default 10,000,000)")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0, help="of measuring; three turns at least (default 60)")
    parser.add_argument("--save", action="store_true", help=f"write benchmarks/results/{NAME}.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str] = ()) -> int:
    """Tokens per second of training a Kneser-Ney model on one core, beside KenLM's lmplz."""
    options = _arguments(argv)
    load_before, lmplz = load_average(), shutil.which("lmplz")
    if lmplz is None:
        print("  lmplz (of KenLM) is not on the PATH: groundup is measured alone", flush=True)
    with tempfile.TemporaryDirectory(prefix="groundup-bench-") as folder:
        told = prepare(options, Path(folder))
        contest = Contest(programs(lmplz), told | {"lmplz": lmplz}, turn_seconds=0.0)
        names = {OURS: "Numba, one thread", PEER: "lmplz, one core"}
        entries = contest.race([Setting(name, names[name], {}) for name in contest.programs], options.seconds)
    if entries[0].rates is None:
        print(f"groundup bench {NAME}: {entries[0].failure}", file=sys.stderr)
        return 1
    record = compare(told, entries)
    record.load_average = {"before": load_before, "after": load_average()}
    print_table(f"{NAME} of order {options.order}, {told['tokens']:,} tokens, {record.device}", record.rows, COLUMNS)
    if options.save:
        print(f"saved {save(record, NAME)}")
    print(record.line(), flush=True)
    return 0
