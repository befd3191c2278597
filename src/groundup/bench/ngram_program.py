"""groundup's side of `bench ngram`: a unit is one training on all documents."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

from groundup.device import environment, peak_memory_bytes
from groundup.model.ngram import KneserNey, split_documents


def prepare(options: dict[str, Any]) -> tuple[dict[str, Any], Callable[[int], dict[str, Any]]]:
    folder = Path(options["folder"])
    training = list(split_documents(np.load(folder / "training.npy"), options["end_of_text"]))
    held_out = np.load(folder / "held_out.npy")

    def train() -> KneserNey:
        return KneserNey(options["order"], vocab_size=options["vocab_size"]).fit(training)

    def run(units: int) -> dict[str, Any]:
        for _ in range(units):
            train()
        return {"peak_bytes": peak_memory_bytes(torch.device("cpu"))}

    model = train()  # compiles
    model.log2_probs(held_out)
    started = time.perf_counter()
    bits = -model.log2_probs(held_out).mean()
    facts = {
        "ngrams": np.diff(model.trie.levels[1:]).tolist(),
        "model_bytes": model.trie.nbytes,
        "held_out_bits_per_token": float(bits),
        "scored_tokens_per_second": len(held_out) / (time.perf_counter() - started),
        "versions": {"numba": numba.__version__, "numpy": np.__version__},
        "environment": environment(),
    }
    del model
    return facts, run
