"""The curve: scores on the validation text during training, and the weights that scored best.

A text that is read too often is learnt by heart: the training loss goes on falling while other text is predicted
worse and worse. The validation text is not trained on, and is not the held-out one, on which nothing is chosen.
"""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from groundup.build.folder import REMEDY
from groundup.files import sha256, write_atomic
from groundup.model import Transformer
from groundup.tensorfile import read_tensors, write_tensors


class Curve:
    """Points in `curve.jsonl`, by step; beside it, in `best/`, the weights of the best one."""

    def __init__(self, run: Path) -> None:
        self.path, self.weights = run / "curve.jsonl", run / "best"

    def points(self) -> list[dict[str, Any]]:
        """All records. ValueError where the file is damaged."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        try:
            points = [json.loads(line) for line in lines]
            return [{**p, "step": int(p["step"]), "bits_per_byte": float(p["bits_per_byte"])} for p in points]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}: damaged ({type(error).__name__}: {error}); {REMEDY}") from error

    def add(self, point: dict[str, Any], model: Transformer) -> None:
        """Append a point, and keep the weights if none is better. A score that is no finite number is no point.

        Points of this step or later ones were made by a session that was killed since: they go, and so do theirs.
        """
        if not math.isfinite(point["bits_per_byte"]):
            return
        earlier = [p for p in self.points() if p["step"] < point["step"]]
        self._drop(lambda step: step >= point["step"])
        best = self._best_of(earlier)
        if best is None or point["bits_per_byte"] < best["bits_per_byte"]:
            write_tensors(self._file(point["step"]), model.state_dict())
            point = {**point, "weights_sha256": sha256(self._file(point["step"]))}
            best = point
        write_atomic(self.path, "".join(json.dumps(p) + "\n" for p in [*earlier, point]))
        self._drop(lambda step: step != best["step"])

    def best(self) -> dict[str, Any] | None:
        """The best point of those whose weights are there."""
        return self._best_of(self.points())

    def _best_of(self, points: list[dict[str, Any]]) -> dict[str, Any] | None:
        kept = [p for p in points if "weights_sha256" in p and self._file(p["step"]).exists()]
        return min(kept, key=lambda p: p["bits_per_byte"], default=None)

    def restore_best(self, model: Transformer, margin: float) -> dict[str, Any] | None:
        """Put the best weights back where the last ones score worse by more than `margin` (a share).

        Returns their point, or None where the last weights stay. ValueError where the best ones are damaged.
        """
        points, best = self.points(), self.best()
        if best is None or points[-1]["bits_per_byte"] <= (1 + margin) * best["bits_per_byte"]:
            return None
        if sha256(self._file(best["step"])) != best["weights_sha256"]:
            raise ValueError(f"{self._file(best['step'])}: damaged; {REMEDY}, or delete it to keep the last weights")
        model.load_state_dict(read_tensors(self._file(best["step"])))
        return best

    def clear(self) -> None:
        """Delete the weights kept here, and whatever a killed session left beside them."""
        shutil.rmtree(self.weights, ignore_errors=True)

    def _file(self, step: int) -> Path:
        return self.weights / f"step-{step}.safetensors"

    def _drop(self, which: Callable[[int], bool]) -> None:
        """Delete weights by step, and halves of files that a killed session left."""
        for file in self.weights.iterdir() if self.weights.exists() else ():
            number = file.stem.removeprefix("step-")
            if file.suffix != ".safetensors" or not number.isdigit() or which(int(number)):
                file.unlink()
