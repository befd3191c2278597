"""groundup's whole engine for `bench decode`: scheduling, the compiled step, sampling, text; one step at a time."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from groundup.device import keep_memory
from groundup.inference import Engine, SamplingParams
from groundup.inference.decode import CompiledDecoder
from groundup.model.gguf import load_gguf
from groundup.tokenizer import Tokenizer


def new_tokenizer(vocab_size: int) -> Tokenizer:
    """As many tokens as the model has, so that every token that it picks becomes text, and none that ends one."""
    words = [b"word%d " % number for number in range(vocab_size - 256)]
    return Tokenizer(dict(enumerate([bytes([byte]) for byte in range(256)] + words)), None, (), None)


def prepare(options: dict[str, Any]) -> tuple[dict[str, Any], Callable[[int], dict[str, Any]]]:
    keep_memory()
    torch.set_num_threads(options["threads"])
    model = load_gguf(Path(options["folder"]) / "bf16.gguf").eval()
    batch, prompt, new = options["batch"], options["prompt"], options["new"]
    decoder = partial(CompiledDecoder.build, weights=options["weights"])
    engine = Engine(
        model, new_tokenizer(options["shape"]["vocab_size"]), dtype=torch.bfloat16, batch_size=batch,
        cache_tokens=batch * (prompt + new + 32), step_tokens=batch * prompt, prefix_cache=False, decoder=decoder,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(options["shape"]["vocab_size"], (batch, prompt), generator=generator).tolist()

    def begin() -> None:
        """New requests, and their first tokens."""
        params = SamplingParams(temperature=0, max_tokens=new + 1)
        requests = [engine.submit(ids, params) for ids in prompts]
        while any(not request.tokens for request in requests):
            engine.step()

    def decode(steps: int) -> dict[str, Any]:
        """The next steps of the same requests, until they are through and others take their place."""
        seconds = 0.0
        for _ in range(steps):
            if not engine.has_work:
                begin()
            started = time.perf_counter()
            engine.step()
            seconds += time.perf_counter() - started
        return {"peak_bytes": 0, "seconds": seconds}

    begin()  # here, so that the race sees how long a step takes and not a prompt, when it decides how many are a turn
    return {"threads": torch.get_num_threads()}, decode
