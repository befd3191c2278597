"""Entry 048: how long does a save hold training up, when it is waited for and when it is written in the background?

    python experiments/048_save_pause.py [--saves 6] [--every 3] [--folder FOLDER]

The model of size S of `groundup bench train-step` (12.7 M parameters, 16 x 256 tokens, bf16, AdamW) on random tokens,
through `train`, with checkpoints every few steps. Timed are the calls that save, the steps, and those steps beside
which a thread was writing. Prints a JSON line for each way of saving.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from unittest import mock

import torch

from groundup import presets
from groundup.data.batch import Batch
from groundup.model import Transformer
from groundup.optim import AdamW
from groundup.train import next_token, train
from groundup.train.resume import Saver

VOCAB = 8192


def batches() -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield {"tokens": torch.randint(0, VOCAB, (16, 257), generator=generator)}


def measure(in_background: bool, saves: int, every: int, folder: Path) -> dict[str, Any]:
    """Milliseconds of saves, of steps beside a thread that writes, and of other steps; the first save is left out."""
    torch.manual_seed(0)
    config = presets.llama(vocab_size=VOCAB, d_model=320, num_layers=6, num_heads=5, d_ff=864, context_length=256)
    model = Transformer(config)
    model.compute_dtype = torch.bfloat16
    pauses: list[float] = []
    steps: dict[bool, list[float]] = {False: [], True: []}
    plain, last = Saver.save, [0.0]

    def timed(saver: Saver, *arguments: Any) -> None:
        began = time.perf_counter()
        plain(saver, *arguments)
        last[0] = time.perf_counter()
        pauses.append(last[0] - began)

    def stepped(step: int, *_: Any) -> None:
        now = time.perf_counter()
        if step > every:  # the first saves bring new memory
            steps[(step - 1) % every == 0].append(now - last[0])
        last[0] = now

    with mock.patch.object(Saver, "save", timed):
        train(
            model, batches(), next_token, AdamW(model, lr=1e-3), saves * every, every={1: stepped}, progress=False,
            run_dir=folder, checkpoint_every=every, keep=1, save_in_background=in_background, recorder=False,
            watch_seconds=None,
        )  # fmt: skip
    kept = pauses[1:saves]
    ms = {name: round(1000 * median(values), 1) for name, values in
          (("save", kept), ("step after a save", steps[True]), ("other steps", steps[False]))}  # fmt: skip
    lower, _, upper = quantiles(kept, n=4)
    return {"in_background": in_background, "ms": ms, "save_quartiles_ms": [round(1000 * q, 1) for q in (lower, upper)],
            "first_save_ms": round(1000 * pauses[0], 1), "saves": len(kept),
            "pause_of_a_step": round(median(kept) / median(steps[False]), 4)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--saves", type=int, default=6)
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where checkpoints go; a temporary folder by default")
    options = parser.parse_args()
    for in_background in (False, True):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            print(json.dumps(measure(in_background, options.saves, options.every, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
