"""Published models whose layers are recurrences."""

from functools import partial

from groundup.model.mamba_published import mamba2
from groundup.presets.published import Published

_MAMBA2 = "Dao & Gu 2024 (arXiv:2405.21060)"

MODELS: dict[str, Published] = {
    "mamba-2-130m": Published(partial(mamba2, "130m"), 130_000_000, _MAMBA2, rounded=10_000_000),
    "mamba-2-370m": Published(partial(mamba2, "370m"), 370_000_000, _MAMBA2, rounded=10_000_000),
    "mamba-2-780m": Published(partial(mamba2, "780m"), 780_000_000, _MAMBA2, rounded=10_000_000),
    "mamba-2-1.3b": Published(partial(mamba2, "1.3b"), 1_300_000_000, _MAMBA2, rounded=100_000_000),
    "mamba-2-2.7b": Published(partial(mamba2, "2.7b"), 2_700_000_000, _MAMBA2, rounded=100_000_000),
}
