"""Every optimizer of this room by its name, so that settings, ledgers and comparisons share one table."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from groundup.config import nearest
from groundup.optim.adafactor import Adafactor
from groundup.optim.adagrad import AdaGrad
from groundup.optim.adamw import AdamW
from groundup.optim.lion import Lion
from groundup.optim.muon import muon_adamw
from groundup.optim.rmsprop import RMSProp
from groundup.optim.sgd import SGD
from groundup.optim.soap import SOAP

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "sgd": SGD,
    "momentum": partial(SGD, momentum=0.9),
    "nesterov": partial(SGD, momentum=0.9, nesterov=True),
    "adagrad": AdaGrad,
    "rmsprop": RMSProp,
    "adamw": AdamW,
    "lion": Lion,
    "adafactor": Adafactor,
    "muon_adamw": muon_adamw,
    "soap": SOAP,
}


def make_optimizer(name: str, model: nn.Module, **options: Any) -> Any:
    """The optimizer of this name over a model's parameter groups; options are those of its class, `lr` among them.

    Raises ValueError for a name or an option that is unknown, with the nearest that is not.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer {name!r} is unknown{nearest(name, OPTIMIZERS)}")
    known = [option for option in inspect.signature(OPTIMIZERS[name]).parameters if option not in ("params", "model")]
    for option in options:
        if option not in known:
            raise ValueError(f"optimizer {name}: option {option!r} is unknown{nearest(option, known)}")
    return OPTIMIZERS[name](model, **options)
