"""Entry 006: from the decoder of 2017 to Llama, one switch at a time, at equal cost, with seeds and a verdict.

    OMP_NUM_THREADS=1 python experiments/006_ablation.py FOLDER [NAME ...]

trains every comparison (or those named) into FOLDER/NAME, goes on where it was stopped, and writes all runs and
verdicts to 006_ablation.jsonl beside this file.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from groundup.config import to_dict
from groundup.files import read_json, write_atomic
from groundup.model import ModelConfig
from groundup.scaling import AblationSettings, Variant, ablate, ladder, leave_one_out, modern, named, resume
from groundup.scaling.ablation import read_runs

SIZES = AblationSettings(
    d_model=64,
    num_layers=4,
    context_length=128,
    batch_size=8,
    vocab_size=1024,
    precision="bf16",
    text_bytes=3_000_000,
    rates=(0.003, 0.01, 0.03),
    seeds=3,
    steps=240,
)


def glu_family(base: ModelConfig) -> list[Variant]:
    """SwiGLU is the base; plain layers and the other gates against it."""
    return named(base, ["relu_mlp", "gelu_mlp", "reglu", "geglu"])


COMPARISONS = {
    "ladder": (ladder, replace(SIZES, match="flops")),
    "glu": (glu_family, replace(SIZES, match="parameters", steps=150)),
    "alone": (leave_one_out, replace(SIZES, match="parameters", steps=160)),
}


def main(out: Path, names: list[str]) -> None:
    for name in names or COMPARISONS:
        variants, settings = COMPARISONS[name]
        if (out / name / "config.json").exists():
            resume(out / name, device="cpu", say=say)
        else:
            ablate([], variants(modern(settings)), settings, out=out / name, device="cpu", say=say)
    lines = []
    for name, (_, settings) in COMPARISONS.items():
        if not (out / name / "result.json").exists():
            continue
        result = read_json(out / name / "result.json")
        lines.append({"comparison": name, "settings": to_dict(settings)})
        lines += [{"comparison": name, **run} for run in read_runs(out / name / "runs.jsonl")]
        lines += [{"comparison": name, "verdict": verdict} for verdict in result["comparisons"]]
    body = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    write_atomic(Path(__file__).with_suffix(".jsonl"), body)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
