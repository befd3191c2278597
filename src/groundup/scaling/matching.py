"""What makes a comparison fair: the same number of parameters, of FLOPs or of seconds for every variant."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from groundup.accounting import count_parameters, training_flops_per_token
from groundup.model import LSTMConfig, MLPConfig, ModelConfig, NeuralNgramConfig
from groundup.scaling.settings import AblationSettings
from groundup.scaling.variants import Variant

TOLERANCE = 0.01
MULTIPLES = (8, 4, 2, 1)


@dataclass(frozen=True)
class Planned:
    """A variant as it is trained: its architecture (d_ff adjusted, where parameters are matched) and its length.

    `flops` are those of all steps, forward and backward, by `accounting`; `peak_bytes` what tensors will hold at most
    in a step (0: not predicted).
    """

    variant: Variant
    config: ModelConfig
    parameters: int
    flops_per_token: float
    seconds_per_step: float
    steps: int
    peak_bytes: int = 0

    def flops(self, batch_tokens: int) -> float:
        return self.steps * batch_tokens * self.flops_per_token


def match_parameters(config: ModelConfig, target: int, tolerance: float = TOLERANCE) -> ModelConfig:
    """`config` with its width (see `width_of`) changed so that its parameters are within `tolerance` of `target`.

    The width is the multiple of 8 nearest to the exact solution, or of 4, 2 or 1 where that is too coarse. Raises
    ValueError where no width does it, or the model has none to change.
    """
    name, widened = width_of(config)
    a, b, c = _quadratic([count_parameters(widened(width)).total for width in (1, 2, 3)])
    exact = (math.sqrt(max(0.0, b * b - 4 * a * (c - target))) - b) / (2 * a) if a else (target - c) / b
    for multiple in MULTIPLES:
        width = max(1, multiple * round(exact / multiple))
        if abs((a * width + b) * width + c - target) <= tolerance * target:
            return widened(width)
    raise ValueError(
        f"match=parameters: {target:,} parameters would need {name}={exact:.1f}; "
        "the variant is too far from the base, so match flops or time instead"
    )


def width_of(config: ModelConfig) -> tuple[str, Callable[[int], ModelConfig]]:
    """The name of what can be made wider, and the model with it at a given size.

    It is d_ff where all blocks have a plain or gated feed-forward layer, and d_hidden where none has one, and all mix
    by an LSTM or a neural n-gram.
    """
    if all(isinstance(block.ffn, MLPConfig) for block in config.blocks):
        return "d_ff", lambda width: _with_d_ff(config, width)
    if all(block.ffn is None and isinstance(block.mixer, LSTMConfig | NeuralNgramConfig) for block in config.blocks):
        return "d_hidden", lambda width: _with_d_hidden(config, width)
    raise ValueError("match=parameters: a block without a plain or gated feed-forward layer has no d_ff to adjust")


def _quadratic(counts: Sequence[int]) -> tuple[float, float, float]:
    """a w^2 + b w + c through the counts at 1, 2 and 3: an LSTM's is quadratic in its cells, the others are linear."""
    one, two, three = counts
    a = (three - 2 * two + one) / 2
    b = two - one - 3 * a
    return a, b, one - a - b


def _with_d_hidden(config: ModelConfig, d_hidden: int) -> ModelConfig:
    blocks = tuple(replace(block, mixer=replace(block.mixer, d_hidden=d_hidden)) for block in config.blocks)  # type: ignore[call-arg]
    return replace(config, blocks=blocks)


def _with_d_ff(config: ModelConfig, d_ff: int) -> ModelConfig:
    blocks = tuple(replace(block, ffn=replace(block.ffn, d_ff=d_ff)) for block in config.blocks)  # type: ignore[type-var]
    return replace(config, blocks=blocks)


def matched_configs(variants: Sequence[Variant], settings: AblationSettings) -> list[ModelConfig]:
    """The variants' architectures, with the first one's number of parameters where these are matched."""
    if settings.match != "parameters":
        return [variant.config for variant in variants]
    target = count_parameters(variants[0].config).total
    return [variants[0].config, *(match_parameters(variant.config, target) for variant in variants[1:])]


def relative_lengths(configs: Sequence[ModelConfig], seconds: Sequence[float], match: str) -> list[float]:
    """Steps of each variant for one step of the first.

    parameters: 1, every variant sees the same tokens. flops: FLOPs per token of the first over its own. time: the
    same of seconds per step, measured in turns.
    """
    if match == "parameters":
        return [1.0] * len(configs)
    costs = [training_flops_per_token(c, c.context_length) for c in configs] if match == "flops" else list(seconds)
    return [costs[0] / cost for cost in costs]


def plan_lengths(
    variants: Sequence[Variant],
    configs: Sequence[ModelConfig],
    seconds: Sequence[float],
    steps: Sequence[int],
    peaks: Sequence[int] = (),
) -> list[Planned]:
    """Every variant with its number of steps and what they cost; `peaks` are bytes, where they were predicted."""
    return [
        Planned(
            variant=variant,
            config=config,
            parameters=count_parameters(config).total,
            flops_per_token=training_flops_per_token(config, config.context_length),
            seconds_per_step=each,
            steps=max(2, count),
            peak_bytes=peak,
        )
        for variant, config, each, count, peak in zip(
            variants, configs, seconds, steps, peaks or [0] * len(variants), strict=True
        )
    ]


def affordable_steps(
    seconds_left: float, seconds: Sequence[float], lengths: Sequence[float], settings: AblationSettings, overhead: float
) -> int:
    """Steps of the first variant that `seconds_left` pay for: all seeds and all runs that choose a rate.

    `overhead` are the seconds of all that is no step. Raises ValueError when that would be fewer than 20.
    """
    runs = settings.seeds + len(settings.tuned_rates) * settings.tune_share
    each = runs * sum(s * length for s, length in zip(seconds, lengths, strict=True))
    steps = int((seconds_left - overhead) / each)
    if steps < 20:
        needed = 20 * each + overhead
        raise ValueError(
            f"the budget leaves {max(0, steps)} steps to a run, and fewer than 20 show nothing; allow at least "
            f"{needed:.0f} s more than reading and measuring take, or compare fewer or smaller models"
        )
    return steps
