"""What a comparison of compressed variants measures, and with how much text and time."""

import re
from dataclasses import dataclass

from groundup.config import nearest

BASELINES = ("fp32", "bf16")
"""Always measured: the model as it is, through torch, and rounded to bfloat16, through the compiled step."""
PLAIN = ("int8", "int4", "fp8", "kv-int8", "kv-fp8", "2:4")
WITH_SHARE = ("magnitude", "wanda", "narrow", "shallow", "distilled")
_SHARED = re.compile(r"([a-z]+)-(\d+)")


@dataclass(frozen=True)
class CompressSettings:
    """Settings of a comparison.

    context_length: tokens in a window of scoring, healing and calibration
    score_bytes: bytes of text that variants are scored on
    calibration_windows: windows that activations are looked at on
    heal_steps: updates that a smaller dense model is trained for
    heal_batch: windows in an update
    heal_rate: learning rate of AdamW
    temperature: of distillation
    top_k: tokens of each distribution that a cache of the teacher's logits keeps
    decode_tokens: tokens that each measurement of speed writes
    rounds: measurements of each program, the variant and its baseline by turns
    seed: of splits and draws
    """

    methods: tuple[str, ...] = (
        "int8", "int4", "fp8", "kv-int8", "magnitude-50", "wanda-50", "2:4", "narrow-75", "shallow-75"
    )  # fmt: skip
    context_length: int = 256
    score_bytes: int = 20_000
    calibration_windows: int = 16
    heal_steps: int = 30
    heal_batch: int = 4
    heal_rate: float = 3e-4
    temperature: float = 2.0
    top_k: int = 64
    decode_tokens: int = 32
    rounds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "context_length",
            "score_bytes",
            "calibration_windows",
            "heal_batch",
            "top_k",
            "decode_tokens",
            "rounds",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"compress: {name}={getattr(self, name)}; expected at least 1")
        if self.heal_steps < 0:
            raise ValueError(f"compress: heal_steps={self.heal_steps}; expected at least 0")
        for method in self.methods:
            parse_method(method)
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"compress: a method is named twice in {', '.join(self.methods)}")

    @property
    def names(self) -> tuple[str, ...]:
        """All variants in their order, the baselines first."""
        return (*BASELINES, *(method for method in self.methods if method not in BASELINES))


def parse_method(method: str) -> tuple[str, float]:
    """("magnitude", 0.5) of "magnitude-50"; a method without a number has share 0. ValueError for an unknown one.

    The number is the per cent that goes (magnitude, wanda), or that stays (narrow: of d_ff; shallow, distilled: of the
    layers).
    """
    if method in (*BASELINES, *PLAIN):
        return method, 0.0
    found = _SHARED.fullmatch(method)
    if found and found[1] in WITH_SHARE and 0 < int(found[2]) < 100:
        return found[1], int(found[2]) / 100
    known = (*PLAIN, *(f"{name}-50" for name in WITH_SHARE))
    raise ValueError(f"compress: method {method!r}{nearest(method, known)}; there are {', '.join(known)}")
