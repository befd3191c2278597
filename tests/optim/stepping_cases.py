"""What every optimizer is held to: awkward shapes, gradients of changing size, and how a run is made from them."""

from typing import Any

import torch

from groundup.optim import SGD, SOAP, Adafactor, AdaGrad, AdamW, Lion, RMSProp

SHAPES = [(41, 7), (129,), (1,), (3, 5, 2), (), (12, 12), (12, 12)]

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (SGD, dict(weight_decay=0.1)),
    "sgd coupled": (SGD, dict(weight_decay=0.1, decoupled=False)),
    "momentum": (SGD, dict(momentum=0.9, weight_decay=0.1)),
    "nesterov": (SGD, dict(momentum=0.9, nesterov=True, weight_decay=0.1, decoupled=False)),
    "adagrad": (AdaGrad, dict(weight_decay=0.1)),
    "adagrad coupled": (AdaGrad, dict(weight_decay=0.1, decoupled=False, initial=0.1)),
    "rmsprop": (RMSProp, dict(weight_decay=0.1)),
    "rmsprop momentum": (RMSProp, dict(momentum=0.9, weight_decay=0.1, decoupled=False)),
    "lion": (Lion, dict(weight_decay=0.1)),
    "adafactor": (Adafactor, dict(weight_decay=0.1)),
    "adafactor absolute": (Adafactor, dict(weight_decay=0.1, relative_step=False)),
    "adamw": (AdamW, dict(weight_decay=0.1)),
    "soap": (SOAP, dict(weight_decay=0.1, frequency=3)),
    "soap one side": (SOAP, dict(frequency=4, max_side=10)),
}

OURS = {name: case for name, case in CASES.items() if name != "adamw"}


def problem(dtype=torch.float32, seed=0):
    """Parameters and a function that gives them new random gradients."""
    generator = torch.Generator().manual_seed(seed)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]

    def new_gradients(step):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=dtype) * 0.1 ** (step % 5)

    return params, new_gradients


def run(make, dtype=torch.float32, steps=100):
    params, new_gradients = problem(dtype)
    optimizer = make(params)
    for step in range(steps):
        new_gradients(step)
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        optimizer.step()
    return params, optimizer


def make(name, **more):
    kind, options = CASES[name]
    return lambda params: kind(params, lr=1e-2, **(options | more))
