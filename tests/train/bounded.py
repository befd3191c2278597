"""Train in a process that may not grow: `python -m tests.train.bounded RUN_DIR MORE_MIB STEPS MICRO_BATCHES OPTIMIZER`.

One step is trained without a limit and saved, and one rehearsed; then MORE_MIB are all that the process may take beyond
what it has.
"""

import resource
import sys
from pathlib import Path
from typing import Any

import torch

from groundup import presets
from groundup.model import Transformer
from groundup.optim import AdamW
from groundup.train import next_token, rehearse, train

CONFIG = presets.llama(vocab_size=256, d_model=64, num_layers=4, num_heads=4, num_kv_heads=2, context_length=128)
WIDE = presets.llama(vocab_size=256, d_model=512, num_layers=4, num_heads=8, num_kv_heads=8, context_length=128)

# Blocks of 64 KiB and more go back to the system when freed, or what a first step held would be there already. glibc's
# variables, which `train` leaves as they are.
GIVE_BACK_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def source(steps, rows, config=CONFIG):
    generator = torch.Generator().manual_seed(0)
    shape = (rows, config.context_length + 1)
    return [{"tokens": torch.randint(config.vocab_size, shape, generator=generator)} for _ in range(steps)]


def limit(more_mib):
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (more_mib << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main(run_dir, more_mib, steps, micro_batches, where):
    torch.set_num_threads(1)
    wide = where == "optimizer"
    model = Transformer(WIDE if wide else CONFIG)
    optimizer = AdamW(model, lr=1e-3)
    batches = source(steps, 1 if wide else 32, model.config)
    options: dict[str, Any] = {
        "run_dir": run_dir,
        "progress": False,
        "watch_seconds": None,
    }  # a thread would take memory of its own
    if not wide:
        train(model, batches[:1], next_token, optimizer, 1, micro_batches=32, **options)
    rehearse(model, next_token, optimizer, batches[0])  # the first one imports parts of torch, which take memory
    limit(more_mib)
    run = train(
        model, batches, next_token, optimizer, steps, resume=not wide, micro_batches=micro_batches, **options,
    )  # fmt: skip
    print(run.losses)


if __name__ == "__main__":
    parts = sys.argv[3:4][0]
    main(sys.argv[1], int(sys.argv[2]), int(parts), "auto" if sys.argv[4] == "auto" else int(sys.argv[4]), sys.argv[5])
