r"""The loss of a model before it exists: a scaling law in bits per byte, with the worth of repeated text.

    bits per byte = difficulty * (E + A / N^alpha + B / D^beta)

N counts all parameters, D the *effective* bytes of training text. The form is Hoffmann et al. 2022, eq. 2
(arXiv:2203.15556), in bits per byte instead of nats per token, so that it holds for any vocabulary. Text that is
read again is worth less each time (Muennighoff et al. 2023, eq. 5, arXiv:2305.16264):

    D = U + U R* (1 - exp(-R / R*)),   U unique bytes, R repeats after the first pass.

`difficulty` moves the curve to other texts: how well zstd packs a sample, against the text of the fit.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class LossLaw:
    """Constants of one fit, what it was fitted on, and how far off it was there."""

    floor: float
    size_scale: float
    size_exponent: float
    data_scale: float
    data_exponent: float
    repeat_worth: float
    reference_zstd: float
    residual: float
    fitted_on: str

    def effective_bytes(self, unique_bytes: float, epochs: float) -> float:
        """Bytes of fresh text that would teach as much as `epochs` passes over `unique_bytes`.

        >>> law = LossLaw(0, 1, 1, 1, 1, repeat_worth=15.0, reference_zstd=1, residual=0, fitted_on="")
        >>> law.effective_bytes(100.0, 0.5), law.effective_bytes(100.0, 1.0)
        (50.0, 100.0)
        >>> 199 > law.effective_bytes(100.0, 2.0) > 190
        True
        """
        if epochs <= 1:
            return unique_bytes * epochs
        repeats = epochs - 1
        return unique_bytes * (1 + self.repeat_worth * (1 - math.exp(-repeats / self.repeat_worth)))

    def bits_per_byte(self, parameters: float, unique_bytes: float, epochs: float, zstd_bits_per_byte: float) -> float:
        """Predicted held-out bits per byte."""
        effective = max(1.0, self.effective_bytes(unique_bytes, epochs))
        reference = (
            self.floor
            + self.size_scale / parameters**self.size_exponent
            + self.data_scale / effective**self.data_exponent
        )
        return reference * zstd_bits_per_byte / self.reference_zstd


BUILD_LAW = LossLaw(
    floor=0.60,
    size_scale=9.0,
    size_exponent=0.25,
    data_scale=60.0,
    data_exponent=0.30,
    repeat_worth=15.4,
    reference_zstd=2.30,
    residual=0.02,
    fitted_on="placeholder until the runs of experiments/001 are in",
)
