"""Where no GPU is, kernels run in Triton's interpreter: it is switched on while their modules are imported.

The switch is read when a kernel is decorated and, here and there, when it runs; elsewhere it is off: processes that
other tests start are not to inherit it.
"""

import importlib
import importlib.util
import os
import pkgutil

import pytest
import torch

INTERPRETED = importlib.util.find_spec("triton") is not None and not torch.cuda.is_available()


def _import_interpreted():
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        from tests.kernels.triton import bfloat16

        bfloat16.repair_interpreter()
        package = importlib.import_module("groundup.kernels.triton")
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    finally:
        del os.environ["TRITON_INTERPRET"]


if INTERPRETED:
    _import_interpreted()


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    if INTERPRETED:
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def device():
    """Where kernels of this process run: on the GPU, or interpreted on the CPU."""
    pytest.importorskip("triton")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
