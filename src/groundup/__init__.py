"""groundup: given this much compute and this data, the best language model you can build.

A public name is imported when it is first used, so `import groundup` and `groundup --help` load no torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from groundup.environ import set_default as _set_default

# OpenMP threads that wait by spinning take the cores from whoever has work: beside another busy process, training
# here ran five times slower, and a compiled decode step beside one torch operation per token 1.6 times. It counts only
# before torch is loaded, so it stands here, where every import of a part of this package comes by.
_set_default("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from groundup import (
        accounting,
        bench,
        config,
        corpus,
        data,
        device,
        evaluation,
        inference,
        kernels,
        model,
        optim,
        parallel,
        presets,
        profiling,
        recipes,
        report,
        scaling,
        tokenizer,
    )
    from groundup.build import build
    from groundup.inference import Completion, Engine, SamplingParams
    from groundup.model import ModelConfig, Transformer
    from groundup.tokenizer import Tokenizer
    from groundup.train import Loss, Run, objectives, train

__version__ = "0.1.0"

__all__ = [
    "Completion", "Engine", "Loss", "ModelConfig", "Run", "SamplingParams", "Tokenizer", "Transformer",
    "accounting", "bench", "build", "config", "corpus", "data", "device", "evaluation", "inference",
    "kernels", "model", "objectives", "optim", "parallel", "presets", "profiling", "recipes", "report",
    "scaling", "tokenizer", "train",
]  # fmt: skip

# The names that live inside a room; every other public name is a room.
_OWNERS = {
    "Completion": "inference",
    "Engine": "inference",
    "SamplingParams": "inference",
    "ModelConfig": "model",
    "Transformer": "model",
    "Tokenizer": "tokenizer",
    "Loss": "train",
    "Run": "train",
    "objectives": "train",
}


def __getattr__(name: str) -> Any:
    if name in _OWNERS:
        return getattr(importlib.import_module(f"groundup.{_OWNERS[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"groundup.{name}")
    raise AttributeError(f"module 'groundup' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _CallableRoom(ModuleType):
    """A room whose main function bears its name: `groundup.train(...)` means `groundup.train.train(...)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return vars(self)[self.__name__.rpartition(".")[2]](*args, **kwargs)


class _Package(ModuleType):
    """Makes `train` and `build` callable at the moment when the import system hangs them on the package."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("train", "build") and type(value) is ModuleType:
            value.__class__ = _CallableRoom
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
