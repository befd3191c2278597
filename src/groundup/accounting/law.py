r"""The loss of a model before it exists: a scaling law in bits per byte, with the worth of repeated text.

    bits per byte = difficulty * (E + ((A / N)^(alpha / beta) + B / D)^beta)

N counts all parameters, D the *effective* bytes of training text. The form is Kaplan et al. 2020, eq. 1.5
(arXiv:2001.08361), in bits per byte instead of nats per token, so that it holds for any vocabulary, and above a floor
E as in Hoffmann et al. 2022 (arXiv:2203.15556). In it, size counts for little while there is little text, as was
measured here: after 0.4 M tokens, models of 1.5 M and 14 M parameters were equally good (experiment 003). Text that
is read again is worth less each time (Muennighoff et al. 2023, eq. 5, arXiv:2305.16264):

    D = U + U R* (1 - exp(-R / R*)),   U unique bytes, R repeats after the first pass.

`difficulty` moves the curve to other texts. Before a tokenizer exists it is estimated from how well zstd packs a
sample; once a Kneser-Ney 5-gram was measured on the held-out text, from that, which is closer: it has seen the same
training text, and is scored on the same held-out one.
"""

import math
from dataclasses import dataclass

# Texts further away than this are extrapolation and nothing else.
MOST_DIFFICULTY = 4.0
ERROR_PER_DISTANCE = 3.0


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
    zstd_exponent: float
    reference_ngram: float
    ngram_exponent: float
    fitted_bytes: float
    residual: float
    fitted_on: str

    def effective_bytes(self, unique_bytes: float, epochs: float) -> float:
        """Bytes of fresh text that would teach as much as `epochs` passes over `unique_bytes`.

        >>> law = LossLaw(0, 1, 1, 1, 1, 15.0, 1, 1, 1, 1, 0, 0, fitted_on="")
        >>> law.effective_bytes(100.0, 0.5), law.effective_bytes(100.0, 1.0)
        (50.0, 100.0)
        >>> 199 > law.effective_bytes(100.0, 2.0) > 190
        True
        """
        if epochs <= 1:
            return unique_bytes * epochs
        repeats = epochs - 1
        return unique_bytes * (1 + self.repeat_worth * (1 - math.exp(-repeats / self.repeat_worth)))

    def difficulty(self, zstd_bits_per_byte: float, ngram_bits_per_byte: float | None) -> float:
        """How much harder a text is than that of the fit, from the better of two estimates that is at hand."""
        if ngram_bits_per_byte is not None:
            ratio, exponent = ngram_bits_per_byte / self.reference_ngram, self.ngram_exponent
        else:
            ratio, exponent = zstd_bits_per_byte / self.reference_zstd, self.zstd_exponent
        return min(max(ratio**exponent, 1 / MOST_DIFFICULTY), MOST_DIFFICULTY)

    def error(self, bits_per_byte: float, difficulty: float, effective_bytes: float = math.inf) -> float:
        """Half-width of the interval around a prediction: two residuals, more for texts unlike that of the fit, and
        for runs shorter than those that were fitted."""
        distance = abs(math.log(difficulty)) + math.log(max(1.0, self.fitted_bytes / max(1.0, effective_bytes)))
        return 2 * self.residual * bits_per_byte * (1 + ERROR_PER_DISTANCE * distance)

    def bits_per_byte(self, parameters: float, unique_bytes: float, epochs: float, difficulty: float = 1.0) -> float:
        """Predicted held-out bits per byte."""
        effective = max(1.0, self.effective_bytes(unique_bytes, epochs))
        size = (self.size_scale / parameters) ** (self.size_exponent / self.data_exponent)
        return difficulty * (self.floor + (size + self.data_scale / effective) ** self.data_exponent)


BUILD_LAW = LossLaw(
    floor=0.35,
    size_scale=6.194e5,
    size_exponent=0.2229,
    data_scale=5.606e6,
    data_exponent=0.1526,
    repeat_worth=15.387756,
    reference_zstd=2.116,
    zstd_exponent=1.7,
    reference_ngram=1.318,
    ngram_exponent=0.8191,
    fitted_bytes=4e5,
    residual=0.028,
    fitted_on="experiments/LOG.md, entry 003",
)
