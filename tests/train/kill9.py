"""Kill a training run at random moments until it is done; it must end as if nothing had happened.

    python -m tests.train.kill9 --kills 200

One process loads torch and forks trainers: a real Transformer, AdamW, warm-up-stable-decay, two micro-batches, a
shuffled loader with a cursor, checkpoints, metrics. Each trainer is sent SIGKILL after a random time, during steps
and saves alike, and the next one resumes; half of them save in the background. Weights, optimizer state, random
generators and every logged loss of a finished run are compared, bit for bit, with those of a run that nobody killed.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from groundup.data import write_shards
from groundup.data.loader import Loader
from groundup.optim import warmup_stable_decay
from groundup.train import checkpoint, read_metrics
from tests.train.small import tiny_model, tiny_run

STEPS = 150
TIMES = {"tokens_per_second", "seconds", "mfu"}


class Letters:
    """The smallest tokenizer: a to z, anything else, and the end of a text."""

    vocab_size, end_of_text, fingerprint = 28, 27, "letters"

    def encode(self, text):
        return [ord(c) - 97 if "a" <= c <= "z" else 26 for c in text]

    def encode_iterable(self, iterable):
        for text in iterable:
            yield from self.encode(text)


def write_data(folder):
    words = random.Random(0)
    texts = [" ".join(words.choices(("ab", "cde", "fghi", "jk"), k=40)) for _ in range(30)]
    write_shards(texts, Letters(), folder)


def trainer(data, run_dir, in_background):
    """One attempt, from wherever the run stands."""
    model = tiny_model(vocab_size=28)
    model.dropout = 0.1  # draws random numbers in every step: a resumed run has to draw the same ones
    tiny_run(
        STEPS,
        model=model,
        source=Loader(data, batch_size=4, context_length=16, seed=1),
        schedule=warmup_stable_decay(10, STEPS),
        micro_batches=2,
        run_dir=run_dir,
        checkpoint_every=7,
        log_every=2,
        keep=2,
        save_in_background=in_background,
        resume=True,
    )


def fork(data, run_dir, in_background):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        trainer(data, run_dir, in_background)
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def run_until_killed(data, run_dir, seconds, in_background=False):
    """True if the trainer was killed, False if it had finished."""
    pid = fork(data, run_dir, in_background)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, f"a trainer failed by itself (status {status})"
            return False
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or status == 0, f"a trainer failed by itself (status {status})"
    return os.WIFSIGNALED(status)


def outcome(run_dir):
    """(final tensors by name, log records without timings)."""
    path = checkpoint.latest(run_dir / "checkpoints")
    assert path is not None
    saved = checkpoint.load(path)
    assert saved.step == STEPS
    records = [{k: v for k, v in r.items() if k not in TIMES} for r in read_metrics(run_dir)]
    return saved.tensors, records


def difference(expected, found):
    """Empty if the two outcomes are the same to the bit, else what differs."""
    faults = [f"tensors {sorted(expected[0].keys() ^ found[0].keys())}"] * (expected[0].keys() != found[0].keys())
    faults += [name for name, t in expected[0].items() if not torch.equal(t, found[0].get(name, torch.empty(0)))]
    if expected[1] != found[1]:
        faults.append("metrics.jsonl: " + json.dumps([r for r in found[1] if r not in expected[1]][:2]))
    return faults


def kill_many(kills, seed=0, longest=0.5, folder=None):
    """(kills made, runs completed, differences, seconds)."""
    torch.set_num_threads(1)
    rng, begun = random.Random(seed), time.monotonic()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=folder or memory) as work:
        root = Path(work)
        write_data(root / "data")
        assert not run_until_killed(root / "data", root / "clean", 60.0)
        expected = outcome(root / "clean")
        made, runs, faults = 0, 0, []
        while made < kills:
            run_dir = root / f"run{runs}"
            while run_until_killed(
                root / "data", run_dir, rng.uniform(0.0, longest) if made < kills else 60.0, rng.random() < 0.5
            ):
                made += 1
            runs += 1
            faults += [f"run {runs}: {fault}" for fault in difference(expected, outcome(run_dir))]
    return made, runs, faults, time.monotonic() - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=0.5, help="seconds before a kill, at most")
    parser.add_argument("--folder", help="where to work; by default in memory, where there is such a place")
    options = parser.parse_args()
    made, runs, faults, seconds = kill_many(options.kills, options.seed, options.longest, options.folder)
    print(f"{made} kills, {runs} completed runs, {len(faults)} differences, {seconds / max(1, made):.2f} s per kill")
    print("\n".join(faults))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
