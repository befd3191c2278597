"""Whether the tensors of a file are the ones that a config asks for: checked by name and shape before any is read."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from groundup.model.transformer import ModelConfig, Transformer

SHOWN = 6  # names per fault in an error message

Shapes = Mapping[str, tuple[int, ...]]


def skeleton(config: ModelConfig, num_tensors: int, where: str) -> Transformer:
    """The model of this config without memory for weights, to compare with a file that holds `num_tensors` tensors.

    ValueError when the config has more layers than that, since building even an empty model takes time in proportion,
    and when a size is beyond what any tensor can have.
    """
    if config.num_layers > num_tensors:
        raise ValueError(f"{where} has {config.num_layers} layers, the weights {num_tensors} tensors")
    try:
        with torch.device("meta"):
            return Transformer(config)
    except RuntimeError as error:  # the product of two sizes passes 2^63
        raise ValueError(f"{where}: its sizes are beyond what a tensor can have ({str(error)[:120]})") from error


def fill(model: Transformer, state: Mapping[str, Tensor]) -> Transformer:
    """A skeleton with these weights. Its counters (experts' loads), which no file holds, start at zero."""
    model.load_state_dict(state, assign=True)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                module.register_buffer(name, torch.zeros(buffer.shape, dtype=buffer.dtype), persistent=False)
    return model


def check_fit(expected: Shapes, found: Shapes, where: str, config_name: str, wrong_type: Sequence[str] = ()) -> None:
    """Raise one ValueError that lists all names that are missing or extra and all shapes that differ."""
    both = sorted(expected.keys() & found.keys())
    faults = {
        "missing": sorted(expected.keys() - found.keys()),
        "not in the config": sorted(found.keys() - expected.keys()),
        "of another shape": [f"{n} {found[n]}, expected {expected[n]}" for n in both if found[n] != expected[n]],
        "not floating point": wrong_type,
    }
    report = [f"{len(names)} {what}: {first_of(names)}" for what, names in faults.items() if names]
    if report:
        raise ValueError(f"{where}: the weights do not fit {config_name}; {'; '.join(report)}")


def first_of(names: Sequence[str]) -> str:
    """The first names of a list, for a message."""
    return ", ".join(name[:120] for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
