"""The flight recorder: norms by layer, read off a step now and then, for the time when something goes wrong."""

import json
import logging
import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from groundup.files import write_atomic
from groundup.train.log import MetricsLog, read_metrics

logger = logging.getLogger("groundup.train")

FILE, FOLDER = "flight.jsonl", "flight"
MEASURES = ("grad_norm", "weight_norm", "update_ratio", "activation_rms", "activation_max")
LOGITS = ("lse", "logit_max")
SAMPLE = 1024
# Multiples of a prime, taken modulo a size, spread evenly over it; the size of no tensor is a multiple of it.
_PRIME = 2_654_435_761


def layer_of(name: str) -> str:
    """The layer to which a parameter belongs: its block, or the module that holds it.

    >>> layer_of("blocks.3.mixer.wq.weight"), layer_of("final_norm.weight"), layer_of("decoder.blocks.0.ffn.up.weight")
    ('blocks.3', 'final_norm', 'decoder.blocks.0')
    """
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(parts[: number + 1]) if number is not None else ".".join(parts[:-1]) or name


class Sheet:
    """What one step's layers looked like; everything stays on the device until `read`.

    The order: the forward passes inside of its `with` block, `take_gradients`, the update, `take_update`. Without an
    update there is no `update_ratio`.
    """

    def __init__(self, model: nn.Module, step: int):
        self.model, self.step = model, step
        named = list(model.named_parameters())
        self.layers = list(dict.fromkeys(layer_of(name) for name, _ in named))
        self.parameters = [p for _, p in named]
        self.owner = torch.tensor([self.layers.index(layer_of(name)) for name, _ in named])
        self.blocks = [
            n for n, _ in model.named_modules() if n.rpartition(".")[2].isdigit() and layer_of(n + ".x") == n
        ]
        self._squares: dict[str, list[Tensor]] = {}
        self._peaks: dict[str, list[Tensor]] = {}
        self._numbers: dict[str, int] = {}
        self._columns: dict[str, Tensor] = {}
        self._before: list[Tensor] = []
        self._undo: list[Callable[[], None]] = []
        self._logits: Tensor | None = None
        self._host: _ToHost | None = None

    def __enter__(self) -> "Sheet":
        for name in self.blocks:
            self._watch(self.model.get_submodule(name), name)
        stack: Any = getattr(self.model, "decoder", self.model)
        if isinstance(norm := getattr(stack, "final_norm", None), nn.Module) and hasattr(self.model, "logits"):
            self._undo.append(norm.register_forward_hook(self._see_hidden).remove)
        return self

    def __exit__(self, *error: object) -> None:
        while self._undo:
            self._undo.pop()()

    def _watch(self, module: nn.Module, name: str) -> None:
        """A hook would be traced into a compiled block, or be ignored there; what it returns is seen from outside."""
        compiled: Any = module._compiled_call_impl
        if compiled is None:
            handle = module.register_forward_hook(lambda module, args, output: self._see(name, output))
            self._undo.append(handle.remove)
            return

        def call(*args: Any, **kwargs: Any) -> Any:
            output = compiled(*args, **kwargs)
            self._see(name, output)
            return output

        object.__setattr__(module, "_compiled_call_impl", call)
        self._undo.append(lambda: object.__setattr__(module, "_compiled_call_impl", compiled))

    @torch.no_grad()
    def _see(self, name: str, output: Any) -> None:
        if torch._C._current_graph_task_id() != -1:
            return  # within a backward pass, activation checkpointing runs the block again
        output = output[0] if isinstance(output, tuple) else output
        if not isinstance(output, Tensor) or not output.is_floating_point() or not output.numel():
            return
        wide = torch.float64 if output.dtype == torch.float64 else torch.float32
        norm = torch.linalg.vector_norm(output.detach(), dtype=wide)
        self._squares.setdefault(name, []).append(norm.double().square())
        self._peaks.setdefault(name, []).append(torch.linalg.vector_norm(output.detach(), math.inf).double())
        self._numbers[name] = self._numbers.get(name, 0) + output.numel()

    @torch.no_grad()
    def _see_hidden(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if self._logits is not None or not torch.is_tensor(output) or output.ndim < 2:
            return
        rows = output.detach().flatten(0, -2)
        model: Any = self.model
        logits = model.logits(rows[_spread(len(rows), SAMPLE // 4, rows.device)])
        self._logits = torch.stack([logits.logsumexp(-1).mean(), logits.abs().amax()]).double()

    @torch.no_grad()
    def take_gradients(self, norm: Tensor | None = None, max_norm: float = math.inf) -> None:
        """From `.grad`. norm, max_norm: of the clipping that was done, which is taken back."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        clipped = self._by_layer(_norms(gradients).square()).sqrt()
        if norm is not None and math.isfinite(max_norm):
            clipped = clipped / (max_norm / (norm.double() + 1e-6)).clamp(max=1.0)
        self._columns["grad_norm"] = clipped
        self._columns["weight_norm"] = self._by_layer(_norms(self.parameters).square()).sqrt()
        self._before = self._sampled()

    @torch.no_grad()
    def take_update(self) -> None:
        """How far the update moved the weights, from a sample of each; to be called once, after the step."""
        if self._host is not None:
            return
        if self._before:
            # Sums over a sample stand for sums over the tensor.
            sizes = [p.numel() / max(1, min(p.numel(), SAMPLE)) for p in self.parameters]
            scale = _sent(sizes, self._before[0].device)
            after = self._sampled()
            moved = torch._foreach_sub(after, self._before)  # pyright: ignore[reportPrivateImportUsage]
            ratio = self._by_layer(_norms(moved).square() * scale) / self._by_layer(_norms(after).square() * scale)
            self._columns["update_ratio"] = ratio.sqrt()
        self._before = []
        self._send()

    def _sampled(self) -> list[Tensor]:
        return [p.detach().reshape(-1)[_spread(p.numel(), SAMPLE, p.device)] for p in self.parameters]

    def _by_layer(self, values: Tensor) -> Tensor:
        sums = torch.zeros(len(self.layers), dtype=torch.float64, device=values.device)
        return sums.index_add_(0, self.owner.to(values.device, non_blocking=True), values)

    @torch.no_grad()
    def _send(self) -> None:
        seen = [name for name in self.blocks if name in self._squares]
        if seen:
            sums = torch.stack([torch.stack(self._squares[name]).sum() for name in seen])
            counts = _sent([self._numbers[name] for name in seen], sums.device)
            self._columns["activation_rms"] = (sums / counts).sqrt()
            self._columns["activation_max"] = torch.stack([torch.stack(self._peaks[name]).amax() for name in seen])
        names = {"activation_rms": seen, "activation_max": seen}
        self._names = [(measure, names.get(measure, self.layers)) for measure in MEASURES if measure in self._columns]
        columns = [self._columns[measure] for measure, _ in self._names]
        self._host = _ToHost(torch.cat([*columns, *([] if self._logits is None else [self._logits])]))
        self._columns.clear()

    def read(self) -> dict[str, Any]:
        """{"step", measure: {layer: value}, "lse", "logit_max"} in four digits; null for what is not finite."""
        if self._host is None:
            self._send()
        assert self._host is not None
        values = iter(self._host.read())
        record: dict[str, Any] = {"step": self.step}
        for measure, layers in self._names:
            record[measure] = {layer: _short(next(values)) for layer in layers}
        return record | dict(zip(LOGITS, map(_short, values), strict=False))


class Recorder:
    """Keeps the newest `keep` sheets and appends each to `run_dir/flight.jsonl`.

    every: updates between two sheets (None: as often as metrics are logged). After a bad step `dump` writes the kept
    ones beside the diagnosis.
    """

    def __init__(self, every: int | None = None, keep: int = 200):
        if (every is not None and every < 1) or keep < 1:
            raise ValueError(f"recorder: every={every}, keep={keep}; expected numbers of at least 1")
        self.every, self.keep = every, keep
        self.ring: deque[dict[str, Any]] = deque(maxlen=keep)
        self.run_dir: Path | None = None
        self._log = MetricsLog(None)

    def open(self, run_dir: str | Path | None, log_every: int, from_step: int = 0) -> None:
        """Begin, or go on with, the file of a run; without one the sheets are only kept."""
        self.every = self.every or log_every
        self.run_dir = None if run_dir is None else Path(run_dir)
        self._log = MetricsLog(run_dir, from_step=from_step, name=FILE)
        self.ring.clear()
        self.ring.extend([] if run_dir is None else read_flight(run_dir)[-self.keep :])

    def begin(self, model: nn.Module, step: int) -> Sheet | None:
        """A sheet for this update, where one is due."""
        return Sheet(model, step) if self.every and step % self.every == 0 else None

    def add(self, sheet: Sheet | None) -> dict[str, float | None]:
        """Read the sheet, if any, of a step that counts, after its update; returns what metrics say of the logits."""
        record: dict[str, Any] = {}
        if sheet is not None:
            sheet.take_update()
            record = sheet.read()
            self.ring.append(record)
            self._log.write(record)
        return {name: record.get(name) for name in LOGITS}

    def rewind(self, step: int) -> None:
        """Forget what came after this step."""
        self._log.rewind(step)
        kept = [record for record in self.ring if record["step"] <= step]
        self.ring.clear()
        self.ring.extend(kept)

    def usual(self) -> dict[str, dict[str, float]]:
        """The median of each measure and layer over the kept sheets."""
        found: dict[str, dict[str, list[float]]] = {measure: {} for measure in MEASURES}
        for record in self.ring:
            for measure in MEASURES:
                for layer, value in record.get(measure, {}).items():
                    if value is not None:
                        found[measure].setdefault(layer, []).append(value)
        return {m: {layer: statistics.median(v) for layer, v in layers.items()} for m, layers in found.items()}

    def dump(self, step: int, diagnosis: dict[str, Any]) -> Path | None:
        """Write `flight/step-N.json` with the diagnosis and the kept sheets; a disk that refuses is no error."""
        if self.run_dir is None:
            return None
        folder = self.run_dir / FOLDER
        number = sum(1 for _ in folder.glob(f"step-{step}*.json"))
        path = folder / f"step-{step}{f'-{number + 1}' if number else ''}.json"
        text = json.dumps({"step": step, **diagnosis, "records": list(self.ring)}, indent=1)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, text.encode())
        except OSError as error:
            logger.warning("cannot write %s: %s", path, error)
            return None
        return path


class _ToHost:
    """Numbers on their way to the host; `read` waits for them, not for what was queued since."""

    def __init__(self, values: Tensor):
        self._event: torch.cuda.Event | None = None
        self._values = values
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> list[float]:
        if self._event is not None:
            self._event.synchronize()
        return self._values.tolist()


def read_flight(run_dir: str | Path) -> list[dict[str, Any]]:
    """The whole records of a run's flight.jsonl."""
    return read_metrics(run_dir, FILE)


def _spread(size: int, count: int, device: torch.device) -> Tensor:
    """`count` places among `size`, or all of them: no stride would do, as it may see a single column of a matrix."""
    if size <= count:
        return torch.arange(size, device=device)
    return torch.arange(count, device=device) * _PRIME % size


def _sent(numbers: Sequence[float], device: torch.device) -> Tensor:
    """On the device, without waiting for it."""
    return torch.tensor(numbers, dtype=torch.float64).to(device, non_blocking=True)


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    """Each tensor's norm, in float64 from here on: the squares of large norms leave float32's range."""
    return torch.stack(torch._foreach_norm(list(tensors))).double()  # pyright: ignore[reportPrivateImportUsage]


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None
