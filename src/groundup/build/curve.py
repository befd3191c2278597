"""The curve: scores on the validation text during training, and the weights that scored best.

A text that is read too often is learnt by heart: the training loss goes on falling while other text is predicted
worse and worse. The validation text is not trained on, and is not the held-out one, on which nothing is chosen.
"""

import json
from pathlib import Path
from typing import Any

from groundup.files import write_atomic
from groundup.model import Transformer
from groundup.tensorfile import read_tensors, write_tensors

# Scores of one text differ by about this much between neighbouring steps.
WORSE = 1.002


class Curve:
    """Points in `curve.jsonl`, by step; beside it, in `best/`, the weights of the best one."""

    def __init__(self, run: Path) -> None:
        self.path, self.weights = run / "curve.jsonl", run / "best"

    def points(self) -> list[dict[str, Any]]:
        """All whole records."""
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def add(self, point: dict[str, Any], model: Transformer) -> None:
        """Append a point, and keep the weights if none is better.

        Points of this step or later ones were made by a session that was killed since: they go, and so do theirs.
        """
        self._drop(lambda step: step >= point["step"])
        points = [p for p in self.points() if p["step"] < point["step"]] + [point]
        write_atomic(self.path, "".join(json.dumps(p) + "\n" for p in points))
        best = self.best()
        if best is None or point["bits_per_byte"] < best["bits_per_byte"]:
            self.weights.mkdir(exist_ok=True)
            write_tensors(self._file(point["step"]), model.state_dict())
            self._drop(lambda step: step != point["step"])

    def best(self) -> dict[str, Any] | None:
        """The best point of those whose weights are there."""
        kept = [p for p in self.points() if self._file(p["step"]).exists()]
        return min(kept, key=lambda p: p["bits_per_byte"], default=None)

    def restore_best(self, model: Transformer) -> dict[str, Any] | None:
        """Put the best weights back where the last ones are clearly worse; their point, or None where they are not.

        Then the weights on disk are no longer needed, but stay until `clear`.
        """
        points, best = self.points(), self.best()
        if best is None or points[-1]["bits_per_byte"] <= WORSE * best["bits_per_byte"]:
            return None
        model.load_state_dict(read_tensors(self._file(best["step"])))
        return best

    def clear(self) -> None:
        """Delete the weights kept here."""
        self._drop(lambda step: True)
        if self.weights.exists():
            self.weights.rmdir()

    def _file(self, step: int) -> Path:
        return self.weights / f"step-{step}.safetensors"

    def _drop(self, which: Any) -> None:
        for file in self.weights.glob("step-*.safetensors"):
            if which(int(file.stem.removeprefix("step-"))):
                file.unlink()
