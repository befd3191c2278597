"""A checkpoint that does not know under which plan it was saved: loading it under any other.

    saved by 4 ranks, shard=2 tensor=2          loaded by 2 ranks, pipeline=2
    every rank wrote its parts of all layers    every rank reads its layers, out of all four ranks' files

The names are the model's, the tensors are whole in the index, and a rank maps the files and reads what it has in common
with each part. Nothing is converted: what is gathered after loading has the bits of what was saved.

There is no pickle in it: tensors are in safetensors files, the rest in JSON. Torch's distributed checkpoints keep their
metadata as a pickle, which runs what its author likes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from groundup.parallel.all_ranks import Ranks
from groundup.parallel.pieces import Parts, Stepped, new_state, state_piece
from groundup.parallel.stored_parts import Piece, StoredParts

MOST_NAMED = 10


def load_sharded(path: str | Path, parts: Parts, group: dist.ProcessGroup | None = None) -> dict[str, Any]:
    """Fill this rank's part of a model, and of its optimizer if it has one, from a folder that `ShardedSaver` made.

    Returns the `state` that was saved. A collective over the group. A parameter without states in the checkpoint, which
    never had a gradient, has none afterwards.

    Raises ValueError, on all ranks and with the model as it was, for a checkpoint that is damaged or was tampered with,
    and for one of another model: with the tensors that are missing, unknown, or of another shape or type.
    """
    ranks, loading, error = Ranks(group), None, None
    try:
        loading = _Loading(path, parts)
    except (ValueError, OSError) as fault:
        error = fault if isinstance(fault, ValueError) else ValueError(f"{path}: {fault}")
    told = ranks.raise_first(error, {} if loading is None else loading.names)
    assert loading is not None
    loading.refuse_unknown(*(set().union(*(other[what] for other in told)) for what in ("weights", "stepped")))
    loading.fill()
    return loading.stored.index.state


class _Loading:
    """What this rank takes from a checkpoint. Raises ValueError unless all of it is there and undamaged."""

    def __init__(self, path: str | Path, parts: Parts) -> None:
        self.stored = StoredParts(path)
        self.weights = {f"model.{name}": piece for name, piece in parts.weights.items()}
        self.stepped = list(parts.stepped())
        saved = self._saved_states()
        self.states = [(at, self._new_states(at, saved.get(at.name, {}))) for at in self.stepped]
        self._refuse([f"missing {name}" for name in self.weights if name not in self.stored.index.tensors])
        for name, piece in self._targets():
            self.stored.check(name, piece)

    @property
    def names(self) -> dict[str, list[str]]:
        """What this rank knows."""
        return {"weights": list(self.weights), "stepped": [at.name for at in self.stepped]}

    def refuse_unknown(self, weights: set[str], stepped: set[str]) -> None:
        """Raise ValueError for tensors of which no rank knows anything. Without an optimizer, states are left alone."""
        saved = self._saved_states()
        states = {full for name, keys in saved.items() for full in keys.values() if name in stepped or not stepped}
        strange = [name for name in self.stored.index.tensors if name not in weights | states]
        self._refuse([f"unknown to the model: {name}" for name in strange])

    def fill(self) -> None:
        for name, piece in self._targets():
            self.stored.copy(name, piece)
        for at, states in self.states:
            at.member.state.pop(at.parameter, None)
            if states:
                at.member.state[at.parameter] = states

    def _targets(self) -> Iterator[tuple[str, Piece]]:
        yield from self.weights.items()
        for at, states in self.states:
            for key, state in states.items():
                yield f"optimizer.{key}.{at.name}", state_piece(state, at.parameter, at.piece)

    def _saved_states(self) -> dict[str, dict[str, str]]:
        """{parameter: {key: the tensor's name}}."""
        found: dict[str, dict[str, str]] = {}
        for full in self.stored.index.tensors:
            room, _, rest = full.partition(".")
            key, _, name = rest.partition(".")
            if room == "optimizer":
                found.setdefault(name, {})[key] = full
        return found

    def _new_states(self, at: Stepped, saved: dict[str, str]) -> dict[str, Tensor]:
        own = [key for key, value in at.member.state.get(at.parameter, {}).items() if value is not None]
        declared = hasattr(at.member, "state_shapes")  # torch's own optimizers only show what they have already
        expected = list(at.member.state_shapes(at.parameter, at.group)) if declared else own
        if saved and (declared or own) and set(saved) != set(expected):
            raise ValueError(
                f"{self.stored.path}: of {at.name} it has {', '.join(sorted(saved))}; "
                f"{type(at.member).__name__} has {', '.join(sorted(expected)) or 'no states'}"
            )
        entries = {key: self.stored.index.tensors[name] for key, name in saved.items()}
        return {key: new_state(at, key, entry.shape, entry.dtype) for key, entry in entries.items()}

    def _refuse(self, faults: list[str]) -> None:
        if faults:
            more = f" (and {len(faults) - MOST_NAMED} more)" if len(faults) > MOST_NAMED else ""
            raise ValueError(f"{self.stored.path} does not fit the model: {'; '.join(faults[:MOST_NAMED])}{more}")


def read_whole(path: str | Path, prefix: str = "model.") -> dict[str, Tensor]:
    """Whole tensors by name, on one process: a model's weights out of a checkpoint of any plan.

    prefix: which; it is taken off. "" gives everything, the optimizer's states too. Raises ValueError for a checkpoint
    that is damaged.
    """
    stored = StoredParts(path)
    return {name.removeprefix(prefix): stored.whole(name) for name in stored.index.tensors if name.startswith(prefix)}
