"""groundup's side of `bench decode`: the compiled decode step over pages, and the prompt through the same step."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from groundup.device import environment, keep_memory
from groundup.inference.batch_cache import new_streams, stream_shapes
from groundup.inference.decode import CompiledDecoder
from groundup.inference.sampling import most_likely
from groundup.model import Transformer
from groundup.model.gguf import load_gguf

PAGE = 16


@dataclass
class Pages:
    """A page store without an engine: every row has its pages, which lie anywhere."""

    streams: list[list[Tensor]]
    states: list[tuple[Tensor, ...]]
    tables: np.ndarray
    page_size: int = PAGE


@dataclass(frozen=True)
class Tokens:
    tokens: list[int]
    start: int
    slot: int
    wanted: int = 1


def new_pages(model: Transformer, rows: int, tokens: int) -> Pages:
    """Room for so many tokens of each row, with keys and values in bfloat16."""
    per_row = -(-tokens // PAGE)
    mixers = [model.config.block(i).mixer for i in range(model.config.num_layers)]
    shapes = [[(rows * per_row * PAGE, *shape) for shape in stream_shapes(mixer)] for mixer in mixers]
    streams = new_streams(shapes, torch.bfloat16, torch.device("cpu"))
    tables = np.random.default_rng(0).permutation(rows * per_row).reshape(rows, per_row).astype(np.int64)
    return Pages(streams, [() for _ in mixers], tables)


def prepare(options: dict[str, Any]) -> tuple[dict[str, Any], Callable[[int], dict[str, Any]]]:
    keep_memory()
    torch.set_num_threads(options["threads"])
    model = load_gguf(Path(options["folder"]) / "bf16.gguf").eval()
    batch, prompt, new = options["batch"], options["prompt"], options["new"]
    pages = new_pages(model, batch, prompt + new)
    decoder = CompiledDecoder.build(model, pages, options["weights"])
    assert isinstance(decoder, CompiledDecoder), decoder
    vocab_size = options["shape"]["vocab_size"]
    prompts = torch.randint(vocab_size, (batch, prompt)).tolist()

    first = [most_likely(decoder.run([Tokens(ids, 0, row)]))[0] for row, ids in enumerate(prompts)]

    def decode(steps: int) -> dict[str, Any]:
        tokens, started = first, time.perf_counter()
        for step in range(steps):
            position = prompt + step % new
            found = decoder.most_likely([Tokens([t], position, row) for row, t in enumerate(tokens)], vocab_size)
            assert found is not None, "the model's logits have a soft cap"
            tokens = found
        return {"peak_bytes": 0, "seconds": time.perf_counter() - started}

    def prefill(prompts_: int) -> dict[str, Any]:
        for _ in range(prompts_):
            decoder.run([Tokens(prompts[0], 0, 0)])
        return {"peak_bytes": 0}

    cache = sum(s[0].nbytes for streams in pages.streams for s in streams) * (prompt + new // 2) * batch
    facts = {
        "threads": decoder.threads,
        "bytes_per_step": decoder.weight_bytes + cache,
        "versions": {"torch": torch.__version__},
        "environment": environment(),
    }
    return facts, prefill if options["mode"] == "prefill" else decode
