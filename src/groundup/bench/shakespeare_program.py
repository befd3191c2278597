"""groundup's side of `bench shakespeare`: a unit of work is the recipe, from the file of text to the last update."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from groundup.config import override
from groundup.device import environment, peak_memory_bytes
from groundup.environ import put
from groundup.recipes import find, run


def prepare(options: dict[str, Any]) -> tuple[dict[str, Any], Callable[[int], dict[str, Any]]]:
    torch.set_num_threads(options["threads"])
    # Not a default: importing torch's compiler in the parent has set it to the user's cache.
    put("TORCHINDUCTOR_CACHE_DIR", options["compiler_cache"])
    recipe = replace(
        override(find(options["recipe"]), *options["changes"]), minutes=options["seconds"] / 60.0, tokens=None
    )

    def once(units: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            result = run(
                recipe, [options["text"]], out=Path(folder) / "run", seed=options["seed"], device="cpu", progress=False
            )
        return {
            "train_seconds": result["seconds"],
            "loss": result["loss"],
            "loss_sliding": result["loss_sliding"],
            "context_length": result["context_length"],
            "validation_characters": result["validation_tokens"],
            "steps": result["steps"],
            "tokens": result["tokens"],
            "parameters": result["parameters"],
            "epochs": result["epochs"],
            "training_loss": result["training_loss"],
            "peak_bytes": peak_memory_bytes(torch.device("cpu")),
        }

    facts = {
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__},
        "environment": environment(),
    }
    return facts, once
