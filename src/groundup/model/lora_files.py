"""Adapters alone on disk: `adapter_model.safetensors` and `adapter_config.json`, as PEFT reads and writes them.

Tensors are named after the base's Hugging Face modules where it has such a class (`base_model.model.model.layers.0.
self_attn.q_proj.lora_A.weight`), and after our own paths where it has none or stores several of our matrices as one
(GPT-2's c_attn): those files only this package reads.
"""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from groundup.files import read_json, write_json
from groundup.model.families import weights_of
from groundup.model.fitting import first_of
from groundup.model.lora import LoRAConfig, adapters, add_lora, linear_maps
from groundup.model.transformer import Transformer
from groundup.model.weight_names import exported_name
from groundup.tensorfile import TensorEntry, read_tensors, validate_header, write_tensors

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
# PEFT's settings that change what an adapter computes, each with the only value that is read.
PLAIN = {
    "use_rslora": False, "use_dora": False, "rank_pattern": {}, "alpha_pattern": {}, "bias": "none",
    "modules_to_save": None, "lora_bias": False, "layer_replication": None,
}  # fmt: skip


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors by our own names: `blocks.0.mixer.wq.lora_a` and so on."""
    return {
        f"{path}.{name}": getattr(adapter, name).detach()
        for path, adapter in adapters(model)
        for name in ("lora_a", "lora_b")
    }


def save_adapter(model: Transformer, path: str | Path, config: LoRAConfig, base: str = "") -> None:
    """Write the two files into the folder `path`; `base` is what PEFT shall load the base from.

    Raises ValueError for a model without adapters.
    """
    found = dict(adapters(model))
    if not found:
        raise ValueError(f"{path}: the model has no adapters to save; `add_lora` puts them in")
    names = module_names(model)
    tensors = {}
    for place, adapter in found.items():
        tensors[f"{PREFIX}{names[place]}.lora_A.weight"] = adapter.lora_a.detach()
        tensors[f"{PREFIX}{names[place]}.lora_B.weight"] = adapter.lora_b.detach()
    write_tensors(Path(path) / WEIGHTS, tensors)
    write_json(Path(path) / CONFIG, _config_json(model, config, [names[place] for place in found], base))


def _config_json(model: Transformer, config: LoRAConfig, targets: list[str], base: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": config.r,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": targets,
        "fan_in_fan_out": any(target.startswith("transformer.h.") for target in targets),
        "inference_mode": True,
        **PLAIN,
        "groundup": {"patterns": list(config.patterns), "base_sha256": fingerprint(model)},
    }


def load_adapter(model: Transformer, path: str | Path) -> LoRAConfig:
    """Put the adapters of a folder, ours or PEFT's, into `model` (see `add_lora`); returns what was added.

    Where they go is read from the tensors' names, and those paths are the patterns of what is returned. Raises
    ValueError that names the file and the fault: damaged files, kinds of adapters that are not plain LoRA, another
    base, names or shapes that do not fit, and numbers that are not finite.
    """
    file = Path(path) / CONFIG
    data = _read_config(file)
    r, alpha, dropout = _numbers(data, file)
    _check_base(model, data, file)
    weights = Path(path) / WEIGHTS
    header = validate_header(weights)
    chosen = _fitting(model, header, r, weights)
    tensors = read_tensors(weights)
    broken = [name for name, tensor in tensors.items() if not tensor.float().isfinite().all()]
    if broken:
        raise ValueError(f"{weights}: NaN or infinity in {first_of(broken)}")
    config = LoRAConfig(r, alpha, tuple(chosen), dropout)
    add_lora(model, config)
    with torch.no_grad():
        for place, adapter in adapters(model):
            adapter.lora_a.copy_(tensors[f"{chosen[place]}.lora_A.weight"])
            adapter.lora_b.copy_(tensors[f"{chosen[place]}.lora_B.weight"])
    return config


def module_names(model: Transformer) -> dict[str, str]:
    """Our path -> the module's name in a file, for every linear map that can have an adapter."""
    maps = linear_maps(model)
    try:
        family = weights_of(model.config)
    except ValueError:
        return {place: place for place in maps}
    theirs = {place: exported_name(family, f"{place}.weight").removesuffix(".weight") for place in maps}
    shared = Counter(theirs.values())
    return {place: name if shared[name] == 1 else place for place, name in theirs.items()}


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names and shapes of the base's parameters: the same architecture, not the same weights."""
    own = (f"{n} {tuple(p.shape)}\n" for n, p in sorted(model.named_parameters()) if ".lora_" not in n)
    return hashlib.sha256("".join(own).encode()).hexdigest()


def _read_config(file: Path) -> dict[str, Any]:
    data = read_json(file)
    if not isinstance(data, dict) or data.get("peft_type") != "LORA":
        kind = data.get("peft_type") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{file}: peft_type {kind!r:.40}; expected 'LORA'")
    for name, plain in PLAIN.items():
        if data.get(name) and data[name] != plain:
            raise ValueError(f"{file}: {name}={data[name]!r:.80} is not supported; expected {plain!r}")
    return data


def _numbers(data: dict[str, Any], file: Path) -> tuple[int, float, float]:
    """r, alpha and dropout, each in its range."""
    r, alpha, dropout = data.get("r"), data.get("lora_alpha"), data.get("lora_dropout", 0.0)
    if type(r) is not int or not _is_number(alpha) or not _is_number(dropout):
        raise ValueError(
            f"{file}: r={r!r:.40}, lora_alpha={alpha!r:.40}, lora_dropout={dropout!r:.40}; expected a whole number "
            "and two numbers"
        )
    try:
        checked = LoRAConfig(r, float(alpha), dropout=float(dropout))
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{file}: {error}") from error
    return checked.r, checked.alpha, checked.dropout


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_base(model: nn.Module, data: dict[str, Any], file: Path) -> None:
    ours = data.get("groundup")
    said = ours.get("base_sha256") if isinstance(ours, dict) else None
    if said is not None and said != fingerprint(model):
        raise ValueError(
            f"{file}: these adapters are for a base whose parameters have other names or shapes than this model's; "
            "load the model that they were trained on"
        )


def _fitting(model: Transformer, header: dict[str, TensorEntry], r: int, file: Path) -> dict[str, str]:
    """Our path -> name in the file of each adapter. ValueError for a name or a shape that does not fit."""
    maps, names = linear_maps(model), module_names(model)
    stems = {name.removesuffix(end) for name in header for end in (".lora_A.weight", ".lora_B.weight")} & {
        f"{PREFIX}{name}" for name in names.values()
    }
    chosen = {place: f"{PREFIX}{name}" for place, name in names.items() if f"{PREFIX}{name}" in stems}
    expected = {}
    for place, stem in chosen.items():
        d_out, d_in = maps[place].weight.shape
        expected |= {f"{stem}.lora_A.weight": (r, d_in), f"{stem}.lora_B.weight": (d_out, r)}
    missing, extra = sorted(expected.keys() - header.keys()), sorted(header.keys() - expected.keys())
    if extra or missing or not chosen:
        lacks = f"; missing: {first_of(missing)}" if missing else ""
        raise ValueError(f"{file}: tensors that no linear map of this model has: {first_of(extra) or 'none'}{lacks}")
    wrong = [f"{n} {header[n].shape}, expected {shape}" for n, shape in expected.items() if header[n].shape != shape]
    wrong += [f"{n} of {entry.dtype}" for n, entry in header.items() if not entry.dtype.is_floating_point]
    if wrong:
        raise ValueError(f"{file}: of another shape or type (r={r}): {first_of(wrong)}")
    return chosen
