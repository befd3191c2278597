"""Weights, optimizer state and random generators as named tensors, and putting them back."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from groundup.config import to_dict


def capture(model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Tensors named `model.<name>`, `optimizer.<key>.<parameter>` and `rng.<device>`.

    Optimizer state goes by the parameter's name, not by a number, so it fits any grouping.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, p, owner, _ in _owned(model, optimizer):
        for key, value in owner.state.get(p, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return tensors | generators()


def generators() -> dict[str, Tensor]:
    """The states of the random generators, as `rng.<device>`."""
    tensors = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        tensors |= {f"rng.cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors


def restore(tensors: dict[str, Tensor], model: nn.Module, optimizer: Any, where: str = "checkpoint") -> None:
    """Put captured tensors back. Everything is checked before anything is changed.

    Raises ValueError that names each missing, extra, misshapen or non-finite tensor.
    """
    weights = {name[len("model.") :]: t for name, t in tensors.items() if name.startswith("model.")}
    check_weights(weights, model, where)
    state = _optimizer_state(tensors, model, optimizer, where)
    model.load_state_dict(weights)
    for p, owner, group, values in state:
        owner.state[p] = {key: _place(key, value, p, owner, group) for key, value in values.items()}
    restore_generators(tensors)


def restore_generators(tensors: dict[str, Tensor]) -> None:
    """Put back what `generators` gave, as far as this machine has the devices."""
    if "rng.cpu" in tensors:
        torch.set_rng_state(tensors["rng.cpu"])
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"rng.cuda{i}" in tensors:
                torch.cuda.set_rng_state(tensors[f"rng.cuda{i}"], i)


def check_weights(weights: dict[str, Tensor], model: nn.Module, where: str) -> None:
    """Raise ValueError listing every way in which `weights` do not fit the model."""
    own = model.state_dict()
    faults = [f"missing {name}" for name in own if name not in weights]
    faults += [f"unknown to the model: {name}" for name in weights if name not in own]
    for name in own.keys() & weights.keys():
        faults += _faults(name, weights[name], own[name])
    if faults:
        more = f" (and {len(faults) - 10} more)" if len(faults) > 10 else ""
        raise ValueError(f"{where} does not fit the model: {'; '.join(sorted(faults)[:10])}{more}")


def fingerprint(model: nn.Module, optimizer: Any, source: Any, given: dict[str, Any] | None) -> dict[str, Any]:
    """What must not change between a checkpoint and its continuation, as JSON.

    Learning rates, schedules and micro-batches may: a branch of a run changes them on purpose.
    The source's `fingerprint` and `given` (the caller's own facts) are taken as they are.
    """
    config = getattr(model, "config", None)
    return {
        "model": to_dict(config) if dataclasses.is_dataclass(config) else type(model).__name__,
        "optimizer": _describe_optimizer(optimizer),
        "source": {name: getattr(source, name, None) for name in ("fingerprint", "tokens_per_batch")},
        "given": to_dict(given),
    }


def _describe_optimizer(optimizer: Any) -> list[dict[str, Any]]:
    free = ("params", "lr", "base_lr", "fused", "foreach")
    return [
        {"class": type(owner).__name__, **{k: _plain(v) for k, v in group.items() if k not in free}}
        for owner in _members(optimizer)
        for group in owner.param_groups
    ]


def differences(saved: Any, current: Any, path: str = "") -> list[str]:
    """Lines `path: saved -> current` for every leaf that differs between two pieces of plain data."""
    if isinstance(saved, dict) and isinstance(current, dict):
        keys = sorted(saved.keys() | current.keys())
        return [
            line
            for key in keys
            for line in differences(saved.get(key), current.get(key), f"{path}.{key}" if path else str(key))
        ]
    if isinstance(saved, list) and isinstance(current, list) and len(saved) == len(current):
        pairs = enumerate(zip(saved, current, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{path}[{i}]")]
    return [] if saved == current else [f"{path}: {saved!r} in the checkpoint, {current!r} now"]


def _faults(name: str, given: Tensor, own: Tensor) -> list[str]:
    if given.shape != own.shape:
        hint = ""
        if name.split(".")[0] in ("embed", "head") and given.shape[1:] == own.shape[1:]:
            hint = ", so the vocabularies differ"
        return [f"{name} has shape {tuple(given.shape)}, the model {tuple(own.shape)}{hint}"]
    if given.dtype != own.dtype:
        return [f"{name} is {given.dtype}, in the model {own.dtype}"]
    if given.is_floating_point() and not bool(torch.isfinite(given).all()):
        return [f"{name} holds NaN or infinity"]
    return []


def _optimizer_state(
    tensors: dict[str, Tensor], model: nn.Module, optimizer: Any, where: str
) -> list[tuple[Tensor, Any, dict[str, Any], dict[str, Tensor]]]:
    by_parameter: dict[str, dict[str, Tensor]] = {}
    for full in (name for name in tensors if name.startswith("optimizer.")):
        _, key, name = full.split(".", 2)
        by_parameter.setdefault(name, {})[key] = tensors[full]
    result = []
    for name, p, owner, group in _owned(model, optimizer):
        values = by_parameter.pop(name, {})
        shapes = owner.state_shapes(p, group) if hasattr(owner, "state_shapes") else {}
        for key, value in values.items():
            expected = shapes.get(key, p.shape)
            if value.shape != expected and (key in shapes or value.shape != torch.Size()):
                raise ValueError(f"{where}: {key} of {name} has shape {tuple(value.shape)}, not {tuple(expected)}")
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise ValueError(f"{where}: {key} of {name} holds NaN or infinity")
        result.append((p, owner, group, values))
    if by_parameter:
        names = ", ".join(sorted(by_parameter)[:10])
        raise ValueError(f"{where}: optimizer state of unknown parameters: {names}")
    return result


def _place(key: str, value: Tensor, p: Tensor, owner: Any, group: dict[str, Any]) -> Tensor:
    # torch's own optimizers keep an unfused step count on the host; ours can skip a step on the device.
    ours = getattr(owner, "supports_skip", False)
    on_host = key == "step" and not (ours or group.get("fused") or group.get("capturable"))
    return value.clone() if on_host else value.to(p.device, copy=True)


def _owned(model: nn.Module, optimizer: Any) -> Iterator[tuple[str, Tensor, Any, dict[str, Any]]]:
    """(name, parameter, the optimizer that owns it, its group); one outside the model goes by its number."""
    names = {id(p): name for name, p in model.named_parameters()}
    for owner in _members(optimizer):
        for group in owner.param_groups:
            for number, p in enumerate(group["params"]):
                yield names.get(id(p), f"#{number}"), p, owner, group


def _members(optimizer: Any) -> list[Any]:
    return list(getattr(optimizer, "optimizers", [optimizer]))


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, (int, float, str)) else str(value)
