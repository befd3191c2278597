"""Why a step was bad: a weight, the data, an activation, a gradient, or the course that training took."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from groundup.data.batch import Batch
from groundup.model.balance import count_micro_batch, start_step
from groundup.train import suspects
from groundup.train.feed import split
from groundup.train.guard import fingerprint, first_non_finite
from groundup.train.objectives import Loss
from groundup.train.ranks import texts_of_ranks, world_size
from groundup.train.recorder import Sheet
from groundup.train.shortage import shortage_of
from groundup.train.step import StepValues
from groundup.train.suspects import RowLoss, describe, guilty, mean_loss, named_rows, row_losses
from groundup.train.tracing import LOSS, Origin, Trace

Kind = Literal["weight", "masked", "data", "activation", "loss", "gradient", "dynamics", "elsewhere", "unknown"]
REFERENCE_ROWS = 16
# Weights rarely double between two sheets, and gradients often do.
RISEN = {"weight_norm": 1.5, "grad_norm": 3.0, "activation_max": 3.0}


@dataclass
class Case:
    """A bad step, and what it is held against.

    group: its batches, each cut into `parts`. threshold: the largest loss that would have passed. reference: the
    batches of the last good step. usual: the recorder's medians. parts_of_weights: this rank's, where ranks divide the
    model, so that none can run the step again by itself.
    """

    model: nn.Module
    objective: Callable[[nn.Module, Batch], Loss]
    group: list[Batch]
    parts: int
    values: StepValues
    threshold: float = math.inf
    reference: list[Batch] | None = None
    usual: dict[str, dict[str, float]] = field(default_factory=dict)
    parts_of_weights: Sequence[tuple[str, Tensor]] | None = None

    @property
    def weights(self) -> dict[str, Tensor]:
        return dict(self.model.named_parameters() if self.parts_of_weights is None else self.parts_of_weights)


@dataclass
class Diagnosis:
    """kind: what is at fault. where: a parameter, a module, a layer, or a tensor of the batch. rows: (batch, row).

    "data": rows of the batch; "dynamics": the weights are finite, and worse than before; "elsewhere": nothing on this
    rank; "unknown": the same batch gives finite numbers when it is run again. layers: the bad step's own sheet.
    """

    kind: Kind
    where: str
    text: str
    rows: list[tuple[int, int]] = field(default_factory=list)
    layers: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def examine(case: Case) -> Diagnosis:
    """Find out on this rank, and say what every rank found. It runs the bad batch again, leaves gradients behind, and
    draws random numbers: set the generators as they were before the step, and clear both up afterwards."""
    try:
        found = _examine(case)
    except Exception as error:  # a model that is broken may raise anything, and the other ranks wait
        found = Diagnosis("unknown", "", f"where it began could not be told ({type(error).__name__}: {error})")
    told = f"{found.text}; batch {fingerprint(case.group)}"
    if world_size() > 1:
        device = next(case.model.parameters()).device
        texts = texts_of_ranks("" if found.kind == "elsewhere" else told, device)
        told = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(texts) if text) or told
    found.text = f"{_headline(case.values)}; {told}"
    return found


def _headline(values: StepValues) -> str:
    if values.weight == 0:
        return "no position of the batch has weight (everything is masked)"
    if not values.finite:
        return f"loss {values.loss:g}, gradient norm {values.grad_norm:g}"
    return f"loss jumped to {values.loss:g}"


def _examine(case: Case) -> Diagnosis:
    if name := first_non_finite(case.weights.items()):
        return _broken_weight(case.weights[name], name)
    if case.values.weight == 0:
        return Diagnosis("masked", "mask", "all weights are finite")
    if bad := suspects.broken_tensors(case.group):
        number, name, rows = bad[0]
        places = [(number, row) for row in rows]
        text = f"the batch's own {name!r} is not finite in {named_rows(places, len(case.group))}"
        return Diagnosis("data", name, text, places)
    if case.parts_of_weights is not None:
        text = "this rank's weights and batch are finite; the step is not run again where ranks divide the model"
        return Diagnosis("unknown", "", text)
    origin, places, layers = _rerun(case)
    if origin is not None:
        return _from_origin(case, origin, places, layers)
    if case.values.finite:
        return _jump(case, layers)
    return _nothing_broke(case, layers)


def _broken_weight(weight: Tensor, name: str) -> Diagnosis:
    bad = ~torch.isfinite(weight)
    first = tuple(bad.nonzero()[0].tolist())
    text = f"the first weight that is not finite is {name} ({int(bad.sum()):,} of {weight.numel():,} numbers, first at"
    return Diagnosis("weight", name, f"{text} {first})")


def _rerun(case: Case) -> tuple[Origin | None, list[tuple[int, int]], dict[str, Any]]:
    """The step's forward and backward passes once more, under hooks: (what broke first, its rows, the sheet)."""
    try:
        return _trace(case, case.parts)
    except (RuntimeError, MemoryError) as error:
        if shortage_of(error) is None:
            raise
    case.model.zero_grad(set_to_none=True)
    return _trace(case, max(suspects.rows_of(batch) for batch in case.group))  # hooks keep alive what a graph frees


def _trace(case: Case, parts: int) -> tuple[Origin | None, list[tuple[int, int]], dict[str, Any]]:
    model, weight = case.model, 0.0
    model.zero_grad(set_to_none=True)
    start_step(model)
    with Sheet(model, 0) as sheet:
        for number, batch in enumerate(case.group):
            before = 0
            for micro in split(batch, parts):
                origin, micro_weight = _pass(case, micro)
                if origin is not None:
                    return origin, [(number, before + row) for row in origin.rows], sheet.read()
                before += suspects.rows_of(micro)
                weight += micro_weight
    for p in model.parameters():
        p.grad = None if p.grad is None else p.grad / (weight or 1.0)
    sheet.take_gradients()
    return None, [], sheet.read()


def _pass(case: Case, micro: Batch) -> tuple[Origin | None, float]:
    with Trace(case.model, suspects.rows_of(micro)) as trace:
        try:
            loss = case.objective(case.model, micro)
            count_micro_batch(case.model)
            trace.loss(loss.total)
            if trace.origin is None or trace.origin.kind == "loss":
                loss.total.backward()
        except (RuntimeError, ValueError):
            if trace.origin is None:
                raise
            return trace.origin, 0.0  # what comes after the first such number may fail in any way
    return trace.origin, float(loss.weight)


def _from_origin(case: Case, origin: Origin, places: list[tuple[int, int]], layers: dict[str, Any]) -> Diagnosis:
    where, text = origin.module, origin.text
    if origin.kind == "loss":
        places = [(r.batch, r.row) for r in row_losses(case.model, case.objective, case.group) if not _finite(r)]
        if names := _only_gradients(case.model):
            where, text = names[0], f"{text}; the first gradient that is not finite is of {names[0]}"
    if places:
        text += f"; {named_rows(places, len(case.group))}"
    return Diagnosis(origin.kind, where, text, places, layers)


def _finite(row: RowLoss) -> bool:
    return math.isfinite(row.loss)


def _only_gradients(model: nn.Module) -> list[str]:
    """The parameters whose gradients alone broke: on the way to them something did. Where all broke, it was the end."""
    graded = [(name, bool(torch.isfinite(p.grad).all())) for name, p in model.named_parameters() if p.grad is not None]
    broken = [name for name, fine in graded if not fine]
    return broken if len(broken) < len(graded) else []


def _nothing_broke(case: Case, layers: dict[str, Any]) -> Diagnosis:
    """Every number was finite: their squares' sum was not, or it was another rank, or it does not happen again."""
    largest = max(
        ((float(p.grad.abs().amax()), name) for name, p in case.model.named_parameters() if p.grad is not None),
        default=(0.0, ""),
    )
    if largest[0] > math.sqrt(torch.finfo(torch.float32).max):
        text = f"all gradients are finite, and their norm is not: the largest, {largest[0]:.3g}, is of {largest[1]}"
        return Diagnosis("gradient", largest[1], text, [], layers)
    if world_size() > 1:
        return Diagnosis("elsewhere", "", "all weights, activations and gradients of this rank are finite", [], layers)
    text = (
        "all weights are finite, and the same batch gives finite numbers when it is run again: it did not come from it"
    )
    return Diagnosis("unknown", "", text, [], layers)


def _jump(case: Case, layers: dict[str, Any]) -> Diagnosis:
    """Finite, and too high. If the last good batch is as bad now, it is the weights; else it is this batch."""
    now = None
    if case.reference is not None:
        now = mean_loss(row_losses(case.model, case.objective, case.reference[:1], REFERENCE_ROWS))
    if now is not None and not now <= case.threshold:
        where, text = _risen(case.usual, layers)
        begun = f"the last good batch has a loss of {now:.3g} now, more than the {case.threshold:.3g} that pass"
        return Diagnosis("dynamics", where, f"{begun}: the weights are at fault, not this batch; {text}", [], layers)
    rows = row_losses(case.model, case.objective, case.group)
    bad = guilty(rows, case.threshold)
    if world_size() > 1 and not any(row.loss > case.threshold for row in rows):
        return Diagnosis("elsewhere", "", "the rows of this rank are as usual", [], layers)
    return Diagnosis("data", "rows", _about_rows(case, rows, bad), [(row.batch, row.row) for row in bad], layers)


def _about_rows(case: Case, rows: Sequence[RowLoss], bad: Sequence[RowLoss]) -> str:
    """The rows at fault, their share of the loss, and what is odd about the worst."""
    total = math.fsum(row.loss * row.weight for row in rows)
    share = 100 * math.fsum(row.loss * row.weight for row in bad) / total if total else 0.0
    places = [(row.batch, row.row) for row in bad]
    every = len(bad) == len(rows) > 1
    text = f"all {len(rows)} rows are above the {case.threshold:.3g} that pass" if every else ""
    text = text or f"{named_rows(places, len(case.group))} of {len(rows)} carry {share:.0f} % of the loss"
    for row in bad[: suspects.MOST_NAMED]:
        about = describe(row, case.model, case.group[row.batch])
        text += f"; {named_rows([(row.batch, row.row)], len(case.group))}: {about}"
    return f"all weights are finite; {text}" + ("" if case.reference else "; no good batch was seen to compare with")


def _risen(usual: dict[str, dict[str, float]], layers: dict[str, Any]) -> tuple[str, str]:
    """(the layer that left its course, what rose there). A weight that jumped is a cause; the others may follow."""
    found = []
    for measure, least in RISEN.items():
        ratios = {
            layer: value / usual[measure][layer]
            for layer, value in layers.get(measure, {}).items()
            if value is not None and usual.get(measure, {}).get(layer)
        }
        if ratios and (best := max(ratios, key=lambda layer: ratios[layer])) and ratios[best] >= least:
            found.append((best, f"{measure.replace('_', ' ')} of {best} is {ratios[best]:.3g} times its median"))
    if not found:
        return "", "no layer stands out" if any(usual.values()) else "no flight recorder says what was usual"
    return found[0][0], ", ".join(text for _, text in found)


__all__ = ["LOSS", "Case", "Diagnosis", "examine"]
