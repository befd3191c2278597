"""Optional trackers that receive the same records as metrics.jsonl. Both stay offline."""

from pathlib import Path
from typing import Any


class TensorBoard:
    """Scalars under the record's keys in `run_dir/tensorboard`. Needs the package `tensorboard`."""

    def __init__(self, run_dir: str | Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError("TensorBoard needs a package: pip install 'groundup[tensorboard]'") from error
        self._writer = SummaryWriter(str(Path(run_dir) / "tensorboard"))

    def write(self, record: dict[str, Any]) -> None:
        for key, value in record.items():
            if key != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(key, value, record["step"])

    def close(self) -> None:
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
        self._run.log({k: v for k, v in record.items() if k != "step" and v is not None}, step=record["step"])

    def close(self) -> None:
        self._run.finish(quiet=True)
