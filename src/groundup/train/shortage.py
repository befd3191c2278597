"""Out of memory: seen where it happens, and answered with what held the memory and which changes would fit."""

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from groundup.accounting.simulate import BACKWARD, FORWARD, KINDS, UPDATE, Moment, Simulation
from groundup.data.batch import Batch
from groundup.device import resident_bytes
from groundup.model import Transformer
from groundup.optim import AdamW, muon_adamw
from groundup.train.rehearsal import rehearse, states
from groundup.train.step import Objective

UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_ASKED = re.compile(r"tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", re.IGNORECASE)
OPTIMIZER_STEP = "optimizer"


class OutOfMemory(MemoryError):
    """A step that does not fit. A MemoryError, which is Python's own word for it, whatever torch raised: a RuntimeError
    on the CPU, torch.OutOfMemoryError on a GPU."""


@dataclass(frozen=True)
class Shortage:
    """What an error told. phase: forward, backward or optimizer. asked: bytes; None where it did not say. grown: bytes
    that the process had taken since the step began; None where that is not known."""

    phase: str
    asked: int | None
    text: str
    grown: int | None = None


def held_bytes(device: torch.device) -> int:
    """By this process now: of the allocator on CUDA, in memory elsewhere; 0 if unknown."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_bytes()


def shortage_of(error: BaseException, phase: str | None = None, grown: int | None = None) -> Shortage | None:
    """What this error says about memory; None if it is about something else."""
    text = str(error)
    told = "can't allocate memory" in text or "out of memory" in text
    if not (isinstance(error, (MemoryError, torch.OutOfMemoryError)) or isinstance(error, RuntimeError) and told):
        return None
    found = _ASKED.search(text)
    asked = None if found is None else int(float(found[1]) * UNITS[found[2]])
    return Shortage(phase or _phase(error), asked, _first_line(error), grown)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def _phase(error: BaseException) -> str:
    """By the functions that it passed through: autograd is entered by `backward`."""
    names, at = set(), error.__traceback__
    while at is not None:
        names.add(at.tb_frame.f_code.co_name)
        at = at.tb_next
    return BACKWARD if "backward" in names else FORWARD


@dataclass(frozen=True)
class Change:
    """Something that would make a step smaller, and the peak that is predicted then."""

    text: str
    peak_bytes: int


@dataclass
class Rehearsals:
    """One step, rehearsed with changes. After a failure this must wait until what the step held has been freed."""

    model: nn.Module
    objective: Objective
    optimizer: Any
    group: list[Batch]
    clip: float
    device: torch.device | None = None

    def simulate(self, micro_batches: int, group: list[Batch] | None = None, **changed: Any) -> Simulation:
        """With attributes of the model `changed`."""
        twin = copy.copy(self.model)
        for name, value in changed.items():
            setattr(twin, name, value)
        group = self.group if group is None else group
        return rehearse(
            twin, self.objective, self.optimizer, group, micro_batches=micro_batches, clip=self.clip, device=self.device
        )

    @property
    def rows(self) -> int:
        """The most micro-batches: of one row each."""
        return max(len(tensor) for batch in self.group for tensor in batch.values())

    @property
    def lasting_bytes(self) -> int:
        """Parameters, a gradient of each, and the optimizer's states that there are."""
        parameters = sum(p.nbytes + p.nbytes * p.requires_grad for p in self.model.parameters())
        return parameters + sum(state.nbytes for state in states(self.optimizer))


def autopsy(shortage: Shortage, step: int, micro_batches: int, rehearsals: Rehearsals) -> OutOfMemory:
    """What to raise: what was asked for, what held the memory, and what would fit, the cheapest first."""
    lines = [
        f"step {step} does not fit in memory with micro_batches={micro_batches}: in its {shortage.phase} "
        f"{'some' if shortage.asked is None else f'{shortage.asked:,}'} bytes more were not to be had ({shortage.text})"
    ]
    try:
        lines += _findings(shortage, micro_batches, rehearsals)
    except Exception as error:  # an objective may do what tensors without storage cannot; the shortage comes first
        lines.append(f"what held it could not be told ({type(error).__name__}: {_first_line(error)})")
        if shortage.phase != OPTIMIZER_STEP:
            lines.append(f"try micro_batches={2 * micro_batches}: the result is the same")
    return OutOfMemory("\n".join(lines))


def _findings(shortage: Shortage, micro_batches: int, rehearsals: Rehearsals) -> Iterator[str]:
    found = rehearsals.simulate(micro_batches)
    phase = UPDATE if shortage.phase == OPTIMIZER_STEP else shortage.phase
    within = [m for m in found.moments if m.phase == phase] or found.moments
    at = _failed(shortage, found, within)
    if at.made_bytes == shortage.asked:
        yield f"asked for by {at.operation}"
    held = ", ".join(f"{kind} {found.held[kind]:,}" for kind in KINDS if found.held[kind])
    yield f"the whole step needs {found.peak_bytes:,} bytes at its peak, in its {found.peak.phase}: {held}"
    if shortage.phase == OPTIMIZER_STEP:
        room, changes = rehearsals.lasting_bytes, _states_changes(rehearsals, found.peak_bytes)
    else:
        room = at.live_bytes - (shortage.asked or at.made_bytes)
        changes = _changes(micro_batches, rehearsals, room)
    yield f"about {room:,} bytes were there; in the order of what they cost, these need less:"
    for number, change in enumerate(changes, 1):
        fits = "" if change.peak_bytes <= room else ", which may still be too much"
        yield f"  {number}. {change.text}: {change.peak_bytes:,} bytes{fits}"


def _failed(shortage: Shortage, found: Simulation, within: list[Moment]) -> Moment:
    """The moment of the failure: of those that ask for as much, the one until which the step had grown as far."""
    asking = [m for m in within if m.made_bytes == shortage.asked]
    if not asking:
        return max(within, key=lambda m: m.live_bytes)
    if shortage.grown is None:
        return asking[0]  # what fits beside the first fits beside all
    held = found.steady_bytes + shortage.grown
    return min(asking, key=lambda m: abs(m.live_bytes - m.made_bytes - held))


def _states_changes(rehearsals: Rehearsals, peak: int) -> Iterator[Change]:
    """No cut of a batch makes states smaller; fewer states do, and fewer parameters."""
    model, adamw = rehearsals.model, isinstance(rehearsals.optimizer, AdamW)
    if not isinstance(model, Transformer):
        return
    with_muon = replace(rehearsals, optimizer=muon_adamw(model)).simulate(rehearsals.rows)
    if adamw and with_muon.peak_bytes < peak:
        yield Change("optim.muon_adamw, with one state per matrix (another result)", with_muon.peak_bytes)
    if (layers := model.config.num_layers // 2) > 0:
        with torch.device("meta"):
            half = Transformer(replace(model.config, num_layers=layers))
        half.compute_dtype, half.recompute = model.compute_dtype, True
        optimizer = AdamW(half, lr=1e-3) if adamw else muon_adamw(half)
        found = replace(rehearsals, model=half, optimizer=optimizer, device=model.device).simulate(rehearsals.rows)
        yield Change(f"num_layers = {layers} (a smaller model), recomputed, a row at a time", found.peak_bytes)


def _changes(micro_batches: int, rehearsals: Rehearsals, room: int) -> Iterator[Change]:
    """In the order of what they cost: a little time, up to a third more time, another result."""
    if micro_batches < rehearsals.rows:
        parts, smaller = fewest(rehearsals.simulate, 2 * micro_batches, rehearsals.rows, room)
        yield Change(f"micro_batches={parts} (same loss)", smaller.peak_bytes)
    blocks = getattr(rehearsals.model, "blocks", None)
    again = getattr(rehearsals.model, "recompute", None)
    if isinstance(blocks, nn.ModuleList) and again is not None and again is not True and again < len(blocks):
        count, smaller = fewest(
            lambda n: rehearsals.simulate(micro_batches, recompute=n), max(1, 2 * int(again)), len(blocks), room
        )
        yield Change(f"model.recompute = {count} (same loss, their forward pass twice)", smaller.peak_bytes)
    if getattr(rehearsals.model, "compute_dtype", None) == torch.float32:
        smaller = rehearsals.simulate(micro_batches, compute_dtype=torch.bfloat16)
        yield Change("precision bf16 (another result)", smaller.peak_bytes)
    else:
        smaller = rehearsals.simulate(micro_batches, [_shorter(batch) for batch in rehearsals.group])
        yield Change("half the context (another result)", smaller.peak_bytes)


def _shorter(batch: Batch) -> Batch:
    return {name: t[:, : (t.shape[1] + 1) // 2] if t.ndim > 1 else t for name, t in batch.items()}


def fewest(needs: Callable[[int], Simulation], least: int, most: int, room: int) -> tuple[int, Simulation]:
    """The first of least, 2 least, 4 least, ... and at last `most` whose step stays within `room`; `most` if none."""
    number = min(least, most)
    while (found := needs(number)).peak_bytes > room and number < most:
        number = min(2 * number, most)
    return number, found
