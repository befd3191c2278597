"""Bytes that a rank sends, counted at torch.distributed's own functions, through which every strategy goes.

    with counting() as sent:
        ...
    assert sent["all_reduce"] == 2 * (size - 1) * nbytes / size and sum(sent.values()) == ...

Of n ranks each sends, of a tensor of S bytes: 2 (n - 1) / n S for an all-reduce; (n - 1) / n S for an all-gather, a
reduce-scatter, S being what all parts are together; all but its own rows for an all-to-all; S for a send.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d as inner

from groundup.parallel import flat


def all_reduce(group: Any, x: Tensor, *_: Any) -> float:
    size = dist.get_world_size(group)
    return 2 * (size - 1) * x.nbytes / size


def all_gather(group: Any, _: Any, x: Tensor) -> int:
    return (dist.get_world_size(group) - 1) * x.nbytes


def reduce_scatter(group: Any, total: Tensor, _: Any) -> int:
    return (dist.get_world_size(group) - 1) * total.nbytes


def all_to_all_single(group: Any, _: Any, x: Tensor, received: Any = None, sent: list[int] | None = None) -> int:
    stays = len(x) // dist.get_world_size(group) if sent is None else sent[dist.get_rank(group)]
    return x.nbytes - x[:stays].nbytes


def isend(group: Any, x: Tensor, *_: Any) -> int:
    return x.nbytes


RULES: dict[str, Callable[..., float]] = {
    "all_reduce": all_reduce,
    "all_gather": all_gather,
    "reduce_scatter": reduce_scatter,
    "all_to_all_single": all_to_all_single,
    "isend": isend,
}


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Bytes by operation, while the block runs. `broadcast` is not counted, since no step needs it."""
    sent: Counter[str] = Counter()

    def counted(operation: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            sent[operation] += RULES[operation](options.get("group"), *args)  # type: ignore[assignment]
            return function(*args, **options)

        return call

    # `P2POp` takes only the `isend` that its own module knows.
    wrapped = [(name, counted(name, getattr(dist, name)), (dist, inner)) for name in RULES]
    wrapped.append(("_all_gather", counted("all_gather", flat._all_gather), (flat,)))
    real = [(module, name, getattr(module, name)) for name, _, modules in wrapped for module in modules]
    try:
        for name, function, modules in wrapped:
            for module in modules:
                setattr(module, name, function)
        yield sent
    finally:
        for module, name, function in real:
            setattr(module, name, function)
