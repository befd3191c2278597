"""Where no GPU is, kernels run in Triton's interpreter, which is switched on while their modules are imported.

The switch is read when a kernel is decorated, those of Triton's own library too: so before anything else in the process
imports Triton. Elsewhere it is off, as processes that other tests start are not to inherit it.
"""

import importlib
import importlib.util
import os
import pkgutil

import torch

INTERPRETED = importlib.util.find_spec("triton") is not None and not torch.cuda.is_available()


def import_kernels() -> None:
    """All of them, interpreted; nothing where Triton is missing or a GPU is there."""
    if not INTERPRETED:
        return
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        importlib.import_module("tests.kernels.triton.bfloat16").repair_interpreter()
        package = importlib.import_module("groundup.kernels.triton")
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    finally:
        del os.environ["TRITON_INTERPRET"]
