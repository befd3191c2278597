"""The lesson of the norms: hardly any FLOPs, a good part of the time, and what fusing changes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from groundup.accounting.hardware import Machine
from groundup.model import ModelConfig, Transformer
from groundup.model.norm import LayerNorm, RMSNorm
from groundup.profiling.groups import NORM
from groundup.profiling.measure import profile_model
from groundup.profiling.result import Profile
from groundup.profiling.settings import ProfileSettings

ROUNDS = 3


@dataclass(frozen=True)
class NormRow:
    """One way to normalise: the norms' shares of a step's FLOPs and time, their seconds, and the whole step's."""

    variant: str
    flops_share: float
    time_share: float
    seconds: float
    over_least: float
    step_seconds: float

    @property
    def gap(self) -> float:
        """How many times larger the share of the time is than that of the FLOPs."""
        return self.time_share / self.flops_share


def compare_norms(
    config: ModelConfig,
    settings: ProfileSettings,
    machine: Machine,
    device: torch.device,
    say: Callable[[str], None] = lambda line: None,
) -> list[NormRow]:
    """LayerNorm and RMSNorm, each operation by operation and fused by torch.compile, in otherwise the same step.

    They take turns, and each shows its fastest round: other work on the machine only ever adds time.

    Raises ValueError for a model without norms.
    """
    if not (config.final_norm or any(block.norms for block in config.blocks)):
        raise ValueError("this model has no norms that could be compared")
    models = {name: model.to(device) for name, model in _variants(config)}
    found: dict[str, list[Profile]] = {name: [] for name in models}
    for turn in range(ROUNDS):
        for name, model in models.items():
            say(f"measuring {name}, round {turn + 1} of {ROUNDS}")
            found[name].append(profile_model(model, settings, machine=machine)[0])
    return [_row(name, min(profiles, key=lambda p: p.traced_seconds)) for name, profiles in found.items()]


def _variants(config: ModelConfig) -> Iterator[tuple[str, Transformer]]:
    for ending in ("", ", fused"):
        for kind, name in (("layer", "LayerNorm"), ("rms", "RMSNorm")):
            model = Transformer(replace(config, blocks=tuple(replace(block, norm=kind) for block in config.blocks)))
            if ending:
                fuse_norms(model)
            yield name + ending, model


def fuse_norms(model: Transformer) -> None:
    """Compile each norm by itself: one pass over its input forward and one backward.

    `forward` and not the module, so that marks around the module stay outside of the compiled code.
    """
    for module in model.modules():
        if isinstance(module, (RMSNorm, LayerNorm)):
            module.forward = torch.compile(module.forward, dynamic=False)


def _row(name: str, profile: Profile) -> NormRow:
    norms = profile.group(NORM)
    assert norms.over_least is not None
    return NormRow(name, norms.flops_share, norms.time_share, norms.seconds, norms.over_least, profile.step_seconds)
