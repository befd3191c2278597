"""Optional trackers that receive the same records as metrics.jsonl. Both stay offline.

Pass them to `train(..., sinks=[TensorBoard(run_dir)])`, or show a run that is there already with `replay`.
"""

from pathlib import Path
from typing import Any

from groundup.train.log import Sink, read_metrics


def replay(run_dir: str | Path, sink: Sink) -> int:
    """Give a run's records, finished or not, to a sink, and close it; returns how many there were.

    Raises ValueError for a folder without metrics.jsonl.
    """
    if not (Path(run_dir) / "metrics.jsonl").exists():
        raise ValueError(f"{run_dir}: no metrics.jsonl; expected the folder of a training run")
    records = read_metrics(run_dir)
    try:
        for record in records:
            sink.write(record)
    finally:
        sink.close()
    return len(records)


class TensorBoard:
    """Scalars under the record's keys in `run_dir/tensorboard`. Needs the package `tensorboard`."""

    def __init__(self, run_dir: str | Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError("TensorBoard needs a package: pip install 'groundup[tensorboard]'") from error
        self._folder, self._make = str(Path(run_dir) / "tensorboard"), SummaryWriter
        self._writer = SummaryWriter(self._folder)

    def write(self, record: dict[str, Any]) -> None:
        """Every number of the record, at its step."""
        for key, value in record.items():
            if key != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(key, value, record["step"])

    def rewind(self, step: int) -> None:
        """Begin a new file, which hides what was written after `step`."""
        self._writer.close()
        self._writer = self._make(self._folder, purge_step=step + 1)

    def close(self) -> None:
        """Flush what is buffered."""
        self._writer.close()


class WeightsAndBiases:
    """Records in `run_dir/wandb`, offline; `wandb sync` uploads them later. Needs the package `wandb`."""

    def __init__(self, run_dir: str | Path, project: str = "groundup", config: dict[str, Any] | None = None):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError("Weights & Biases needs a package: pip install 'groundup[wandb]'") from error
        self._run = wandb.init(project=project, dir=str(run_dir), config=config, mode="offline")

    def write(self, record: dict[str, Any]) -> None:
        """The record without what is not known, at its step."""
        self._run.log({k: v for k, v in record.items() if k != "step" and v is not None}, step=record["step"])

    def close(self) -> None:
        """End the tracker's run."""
        self._run.finish(quiet=True)
