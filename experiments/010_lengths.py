"""Entry 010 of LOG.md: which positions read further than they were trained to, and what does stretching RoPE repair?

    OMP_NUM_THREADS=1 python experiments/010_lengths.py FOLDER

trains the comparison into FOLDER, goes on where it was stopped, and writes all runs to 010_lengths.jsonl beside this
file.
"""

import json
import sys
from pathlib import Path

from groundup.config import to_dict
from groundup.files import write_atomic
from groundup.report.ablation import ablation_text, write_ablation_report
from groundup.scaling import AblationSettings, ablate, modern, named, resume
from groundup.scaling.ablation import read_runs

SETTINGS = AblationSettings(
    d_model=64,
    num_layers=4,
    context_length=128,
    batch_size=8,
    vocab_size=1024,
    text_bytes=3_000_000,
    scored_bytes=40_000,
    rates=(0.02,),
    seeds=2,
    steps=250,
    lengths=(1, 2, 4, 8),
    scalings=("linear", "ntk", "yarn"),
)


def main(out: Path) -> None:
    if (out / "config.json").exists():
        resume(out, device="cpu", say=say)
    else:
        variants = named(modern(SETTINGS), ["learned", "sinusoidal", "nope", "alibi"])
        ablate([], variants, SETTINGS, out=out, device="cpu", say=say)
    write_ablation_report(out)
    print(ablation_text(out))
    lines = [{"settings": to_dict(SETTINGS)}, *read_runs(out / "runs.jsonl")]
    body = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    write_atomic(Path(__file__).with_suffix(".jsonl"), body)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
