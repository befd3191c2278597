"""Published models, what tests do with them, and peers that may not be installed.

`python scripts/fetch_models.py` puts the files into `.models`, and the environment variable GROUNDUP_MODELS names
another folder. A test whose file is missing skips.
"""

import os
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY

FOLDER = Path(os.environ.get("GROUNDUP_MODELS") or REPOSITORY / ".models")


def path_of(name):
    """The path of a published model, or a skipped test."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{path} is missing; scripts/fetch_models.py fetches it")
    return path


def shaken(model, seed=0):
    """The model with every weight moved, so that norms and biases are not what they begin as."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def llama_cpp(path):
    """A function of (prompt, tokens) -> the text that llama.cpp goes on with, or a skipped test."""
    peer = pytest.importorskip("xllamacpp", reason="xllamacpp, llama.cpp for Python, is not installed")
    params = peer.CommonParams()
    params.model.path = str(path)
    params.n_parallel, params.n_ctx, params.warmup, params.verbosity, params.n_gpu_layers = 1, 256, False, -1, 0
    params.cpuparams.n_threads = 1
    params.cache_type_k = params.cache_type_v = peer.ggml_type.GGML_TYPE_F32
    server = peer.Server(params)

    def greedy(prompt, tokens):
        request = {"prompt": prompt, "max_tokens": tokens, "temperature": 0.0, "samplers": ["top_k"], "top_k": 1,
                   "cache_prompt": False, "ignore_eos": True}  # fmt: skip
        return server.handle_completions(request)["choices"][0]["text"]

    return greedy
