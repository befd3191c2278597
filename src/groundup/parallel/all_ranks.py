"""What happens on one rank is known to all: what each has to say, and errors, which all raise together.

Where one rank raises and the others go on to a collective, they wait for it until they time out.
"""

import json
import traceback
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from groundup.parallel.agreement import texts_of_ranks


class ElsewhereError(RuntimeError):
    """Another rank failed, and says why itself."""


class Ranks:
    """What all ranks of a group tell each other; in a process without a group, itself."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._alone = not dist.is_initialized()
        self._group = group
        self.rank = 0 if self._alone else dist.get_rank(group)
        self.size = 1 if self._alone else dist.get_world_size(group)

    def tell(self, text: str) -> list[str]:
        """Every rank's text, in their order."""
        if self._alone:
            return [text]
        on_gpu = dist.get_backend(self._group) == "nccl"
        return texts_of_ranks(text, torch.device("cuda" if on_gpu else "cpu"), self._group)

    def raise_first(self, error: BaseException | None, said: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """What every rank has to say. Raises, on all of them, the first rank's error if any has one."""
        text = None if error is None else "".join(traceback.format_exception(error)).rstrip()
        own = {"error": text, "kind": _kind(error), **(said or {})}
        told = [json.loads(each) for each in self.tell(json.dumps(own))]
        failed = [rank for rank, other in enumerate(told) if other["error"] is not None]
        if failed:
            rank = min(failed, key=lambda rank: (told[rank]["kind"] == "elsewhere", rank))
            errors: dict[str, type[Exception]] = {"disk": OSError, "value": ValueError}
            raise errors.get(told[rank]["kind"], RuntimeError)(f"rank {rank} failed: {told[rank]['error']}") from error
        return told


def _kind(error: BaseException | None) -> str:
    match error:
        case ElsewhereError():
            return "elsewhere"
        case OSError():
            return "disk"
        case ValueError():
            return "value"
    return ""
