"""Scores on a recipe's validation text: some of it on the way, all of it at the end.

A twin of the model is scored: the trained one is compiled, for batches of one shape.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from groundup import train
from groundup.device import rank
from groundup.evaluation import token_nats
from groundup.model import Transformer
from groundup.parallel.engine import Engine
from groundup.recipes.recipe import Recipe
from groundup.recipes.text import Ids, Prepared
from groundup.train.ranks import largest_over_ranks

CURVE_TOKENS = 50_000


@dataclass
class Curve:
    """Scores on the beginning of the validation text, at equal parts of the run; their time is the run's."""

    path: Path
    recipe: Recipe
    prepared: Prepared
    began: float
    deadline: float | None
    engine: Engine | None = None
    points: list[dict[str, float]] = field(default_factory=list)
    twin: Transformer | None = None

    def __post_init__(self) -> None:
        if self.path.exists():  # a run that is gone on with
            self.points = [json.loads(line) for line in self.path.read_text("utf-8").splitlines()]

    def look(self, step: int, model: Any, ran: train.Run) -> None:
        """The trainer's hook: score if the next part of the run is over."""
        self.points = [point for point in self.points if point["step"] < step]
        due = len(self.points) + 1
        if due > self.recipe.curve_points or not self.is_time(step, due, model.device):
            return
        if self.twin is None:
            self.twin = Transformer(self.recipe.model).to(model.device)
        self.twin.load_state_dict(model.state_dict() if self.engine is None else self.engine.full_state_dict())
        self.twin.compute_dtype = model.compute_dtype
        loss = score(self.twin, first_tokens(self.prepared.validation, CURVE_TOKENS), self.prepared.begin)
        self.points.append({"step": step, "seconds": time.monotonic() - self.began, "tokens": ran.tokens, "loss": loss})
        if rank() == 0:  # all ranks score, as none could go on meanwhile: nobody waits in a collective
            self.path.write_text("".join(json.dumps(point) + "\n" for point in self.points), encoding="utf-8")

    def is_time(self, step: int, due: int, device: torch.device) -> bool:
        """Whether the run is so far; where weights are gathered for it, all ranks go by the fastest clock."""
        reached = self.share(step) * (self.recipe.curve_points + 1) >= due
        return reached if self.engine is None else largest_over_ranks([float(reached)], device)[0] > 0

    def share(self, step: int) -> float:
        """How much of the run is over."""
        if self.deadline is None:
            return step / (self.recipe.steps or math.inf)
        return (time.monotonic() - self.began) / (self.deadline - self.began)


def first_tokens(documents: Sequence[Ids], most: int) -> list[Ids]:
    """The documents from the first on, as many whole ones as fit, and at least a part of the first."""
    kept: list[Ids] = [documents[0][:most]]
    room = most - len(kept[0])
    for document in documents[1:]:
        if len(document) > room:
            break
        kept.append(document)
        room -= len(document)
    return kept


def score(model: Transformer, documents: Sequence[Ids], begin: int, stride: int | None = None) -> float:
    """Mean nats per token. Windows advance by `stride` (default: the context, so that they share no target)."""
    context = model.config.context_length
    nats = token_nats(model, documents, begin=begin, context_length=context, stride=stride or context)
    return float(np.concatenate(nats).mean())


def scores(model: Transformer, prepared: Prepared, recipe: Recipe) -> dict[str, Any]:
    """Losses on the whole validation text, by a model that is not compiled.

    Of a text that was cut, which is short, also with windows that advance by a quarter of the context.
    """
    twin = Transformer(recipe.model).to(model.device)
    twin.load_state_dict(model.state_dict())
    twin.compute_dtype = model.compute_dtype
    text, context = (prepared.validation, prepared.begin), recipe.model.context_length
    loss = score(twin, *text)
    return {
        "loss": loss,
        "loss_sliding": score(twin, *text, max(1, context // 4)) if recipe.tail else None,
        "nats_per_character": loss * prepared.tokens / prepared.characters,
        "validation_tokens": prepared.tokens,
        "context_length": context,
    }
