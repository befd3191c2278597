"""Which model is profiled: a folder's, a published one's shape, or one made of settings; weights do not matter."""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from groundup import presets
from groundup.accounting import count_parameters, training_memory
from groundup.config import nearest, override
from groundup.device import available_bytes
from groundup.model import ModelConfig, Transformer
from groundup.model.pretrained import load_config, load_pretrained
from groundup.profiling.settings import LONGEST_BY_DEFAULT, ProfileSettings

# About what `groundup build` makes in ten minutes.
DEFAULTS: dict[str, Any] = {"vocab_size": 4096, "d_model": 256, "num_layers": 4, "context_length": 256}
GIB = 2**30


def subject(name: str | None, changes: Sequence[str], settings: ProfileSettings, device: torch.device) -> Transformer:
    """The model on its device. `changes` are key=value of its config, dotted ones too; they give new random weights.

    Raises ValueError for a name that is neither a folder nor a published model, for unknown keys, and for a model that
    does not fit into memory, before it is made.
    """
    if name is not None and Path(name).is_dir() and not changes:
        return load_pretrained(name).to(device)
    config = subject_config(name, changes)
    _check_memory(config, settings, device)
    return Transformer(config).to(device)


def subject_config(name: str | None, changes: Sequence[str]) -> ModelConfig:
    """The model's config alone. Raises ValueError as `subject` does, whatever the memory."""
    if name is None:
        return from_settings(changes)
    config = load_config(name) if Path(name).is_dir() else presets.published(name)
    return override(config, *changes)


def from_settings(changes: Sequence[str]) -> ModelConfig:
    """A Llama by the dials of `presets.llama`; dotted keys change the config that they make.

    >>> from_settings(["num_layers=2", "blocks.0.ffn.d_ff=99"]).num_layers
    2
    """
    dials = {word.partition("=")[0]: word.partition("=")[2] for word in changes if "." not in word.partition("=")[0]}
    known = inspect.signature(presets.llama).parameters
    if unknown := [key for key in dials if key not in known]:
        raise ValueError(f"unknown setting {unknown[0]!r}{nearest(unknown[0], known)}")
    config = presets.llama(**DEFAULTS | {key: _number(key, value) for key, value in dials.items()})
    return override(config, *(word for word in changes if word.partition("=")[0] not in dials))


def _number(key: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(f"{key}={text}: expected a number, true or false") from None


def _check_memory(config: ModelConfig, settings: ProfileSettings, device: torch.device) -> None:
    there = available_bytes(device)
    needed = _least_bytes(config, settings)
    if there and needed < there and settings.phase == "train":  # activations take a while to count
        length = settings.context_length or min(config.context_length, LONGEST_BY_DEFAULT)
        needed = training_memory(config, settings.batch_size, length).peak
    if there and needed > 0.9 * there:
        raise ValueError(
            f"a step of this model takes {needed / GIB:,.1f} GiB and {there / GIB:,.1f} GiB are free; profile fewer of "
            f"its layers, which repeat (num_layers={max(1, config.num_layers // 8)}), or a smaller batch_size"
        )


def _least_bytes(config: ModelConfig, settings: ProfileSettings) -> int:
    """Weights; when training gradients and AdamW's two states as well."""
    return 4 * count_parameters(config).total * (4 if settings.phase == "train" else 1)
