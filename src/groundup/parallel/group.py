"""The process group of a run: joined as torchrun or `launch` say, watched, and left in order.

with joined(timeout=600) as place:      # rank 0 of 1, and no group, in a process that nobody launched
    ...
"""

import contextlib
import os
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from groundup.device import rank as own_rank
from groundup.device import world_size
from groundup.environ import env
from groundup.parallel.watchdog import Watchdog

TCPStore: Any = dist.TCPStore  # pyright: ignore[reportPrivateImportUsage]
PrefixStore: Any = dist.PrefixStore  # pyright: ignore[reportPrivateImportUsage]
rendezvous: Any = dist.rendezvous  # pyright: ignore[reportPrivateImportUsage]

LAUNCHER = "GROUNDUP_LAUNCHER"
"""Set by `launch`: PORT/PREFIX of the store that it hosts on this machine."""

LONGER = 60.0
"""Seconds by which the process group waits longer than the watchdog, whose report says more."""


@dataclass(frozen=True)
class Place:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1


@contextlib.contextmanager
def joined(timeout: float = 600.0, backend: str | None = None) -> Iterator[Place]:
    """Be a rank for the length of a block.

    timeout: seconds that a rank may stand in one collective, which is a hang then (see `Watchdog`): longer than
    whatever one rank does alone while the others wait for it.
    backend: nccl where there is CUDA, gloo elsewhere, unless named.

    An exception in the block is left in the launcher's store before it goes on its way, so that of all ranks' errors
    that one is shown which was first.
    """
    size = world_size()
    if size == 1:
        yield Place()
        return
    store, rank = _store(timeout), own_rank()
    backend = backend or ("nccl" if torch.cuda.is_available() else "gloo")
    dist.init_process_group(
        backend, store=PrefixStore("group", store), rank=rank, world_size=size,
        timeout=timedelta(seconds=timeout + LONGER),
    )  # fmt: skip
    watch = Watchdog(PrefixStore("watch", store.clone()), rank, size, timeout)
    try:
        yield Place(rank, size)
        dist.barrier()
    except BaseException:
        store.set(f"error/{rank}", traceback.format_exc())
        raise
    finally:
        watch.close()
    dist.destroy_process_group()


def _store(timeout: float) -> Any:
    limit = timedelta(seconds=timeout + LONGER)
    address = env(LAUNCHER)
    if address is None:  # torchrun, or whoever sets MASTER_ADDR and MASTER_PORT
        return next(rendezvous("env://", timeout=limit))[0]
    threading.Thread(target=_end_with_launcher, name="launcher", daemon=True).start()
    port, _, prefix = address.partition("/")
    return PrefixStore(prefix, TCPStore("127.0.0.1", int(port), is_master=False, timeout=limit))


def _end_with_launcher() -> None:
    """The launcher holds the other end of standard input: its end is the launcher's."""
    while os.read(0, 1):  # not through sys.stdin, whose lock must be free when Python ends
        pass
    os._exit(1)
