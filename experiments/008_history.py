"""Entry 008: the history of language models on one text: unigram, n-gram, neural n-gram, LSTM, decoders.

    OMP_NUM_THREADS=1 python experiments/008_history.py FOLDER

trains every rung into FOLDER, goes on where it was stopped, and writes all runs, rungs and verdicts to
008_history.jsonl beside this file.
"""

import json
import sys
from pathlib import Path

from groundup.files import read_json, write_atomic
from groundup.report.history import history_text, write_history_report
from groundup.scaling import AblationSettings, HistorySettings, history, is_history, resume_history
from groundup.scaling.ablation import read_runs

TRAINING = AblationSettings(
    d_model=64,
    num_layers=4,
    context_length=128,
    batch_size=8,
    vocab_size=1024,
    match="parameters",
    precision="bf16",
    text_bytes=1_500_000,
    rates=(0.003, 0.01, 0.03),
    tune_share=0.25,
    seeds=3,
    steps=600,
)


def main(out: Path) -> None:
    if is_history(out):
        result = resume_history(out, device="cpu", say=say)
    else:
        result = history([], HistorySettings(), TRAINING, out=out, device="cpu", say=say)
    lines = [{"settings": result["settings"], "notes": result["notes"]}]
    lines += [{"run": run} for run in read_runs(out / "neural" / "runs.jsonl")]
    for name in ("rungs", "orders", "compressors", "comparisons"):
        lines += [{name: row} for row in result[name]]
    lines += [{name: result[name]} for name in ("ordering", "entropy", "beside") if result.get(name)]
    body = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
    write_atomic(Path(__file__).with_suffix(".jsonl"), body)
    write_history_report(out)
    print(history_text(out))
    print(read_json(out / "counted.json")["held_out_bytes"], "bytes held out")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
