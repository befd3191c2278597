"""Numbers as a person reads them. The unit is in a quantity's name: `step_seconds`, `peak_memory_bytes`."""

import sys
from typing import Any

from groundup.config import plural

MISSING = "–"

_SCALES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))

# The ending of a name -> its unit. The first match counts, so longer endings stand first.
_UNITS = (
    ("flops_per_second", "FLOP/s"),
    ("bytes_per_second", "B/s"),
    ("tokens_per_second", "tokens/s"),
    ("bytes_per_token", "bytes/token"),
    ("nats_per_token", "nats/token"),
    ("bits_per_byte", "bits/byte"),
    ("loss", "nats/token"),
    ("seconds", "seconds"),
    ("bytes", "bytes"),
    ("flops", "FLOP"),
    ("joules", "J"),
    ("watts", "W"),
    ("kwh", "kWh"),
    ("dollars", "USD"),
    ("usd", "USD"),
    ("euros", "EUR"),
    ("mfu", "%"),
    ("fraction", "%"),
    ("share", "%"),
    ("epochs", "epochs"),
)
_LABEL_ENDINGS = {"memory bytes": "memory", "seconds": "time"}
_ACRONYMS = {"mfu": "MFU", "bpb": "BPB", "lr": "learning rate", "flops": "FLOPs", "gpu": "GPU", "cpu": "CPU"}


def number(value: Any) -> float | None:
    """The finite number that `value` is, else None: run files may hold null, NaN or text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Comparing also holds for NaN and for integers that no float can hold.
    return float(value) if abs(value) <= sys.float_info.max else None


def unit(name: str) -> str:
    """The unit that a quantity's name ends in, "" for a plain count.

    >>> unit("step_seconds"), unit("parameters")
    ('seconds', '')
    """
    return next((unit for ending, unit in _UNITS if name == ending or name.endswith(f"_{ending}")), "")


def label(name: str) -> str:
    """A quantity's name as words, without the unit that its value will show.

    >>> label("peak_memory_bytes"), label("step_seconds")
    ('peak memory', 'step time')
    """
    words = name.replace(".", " ").replace("-", " ").replace("_", " ")
    if "per second" not in words:
        for ending, shown in _LABEL_ENDINGS.items():
            words = words.removesuffix(ending) + shown if words.endswith(ending) else words
    return " ".join(_ACRONYMS.get(word, word) for word in words.split())


def quantity(name: str, value: Any) -> str:
    """`value` with its unit, to the digits that matter.

    >>> quantity("step_seconds", 0.0421), quantity("peak_memory_bytes", 3 * 2**30), quantity("steps", 1200)
    ('42.1 ms', '3.00 GiB', '1,200')
    """
    x = number(value)
    if x is None:
        return MISSING if value is None or isinstance(value, float) else plain(value)
    match unit(name):
        case "seconds":
            return duration(x)
        case "bytes":
            return binary(x)
        case "%":
            return f"{100 * x:.1f} %"
        case "USD" | "EUR" as currency:
            return f"{x:,.2f} {currency}"
        case "epochs":
            return f"{x:.2f}"
        case "bits/byte" | "nats/token" | "bytes/token" as each:
            return f"{x:.3f}" if "per" in name else f"{x:.3f} {each}"
        case "tokens/s":
            return count(x)
        case "FLOP" | "FLOP/s" | "B/s" | "J" as scaled:
            return decimal(x, scaled)
        case "":
            return count(x)
        case other:
            return f"{count(x)} {other}"


def plain(value: Any) -> str:
    """Any JSON value as short text; collections as their size."""
    match value:
        case None:
            return MISSING
        case bool():
            return "yes" if value else "no"
        case int() | float():
            return MISSING if (x := number(value)) is None else count(x)
        case dict() | list():
            return plural(len(value), "entry", "entries")
        case _:
            return str(value)


def count(x: float) -> str:
    """Whole numbers with separators, others to four significant digits."""
    if abs(x) < 1e15 and (x == int(x) or abs(x) >= 10_000):
        return f"{x:,.0f}"
    return f"{x:.4g}"


def counted(x: float, noun: str) -> str:
    """A number that may be no whole one, with its noun.

    >>> counted(1.0, "step"), counted(2.5, "step")
    ('1 step', '2.5 steps')
    """
    return f"{count(x)} {noun if x == 1 else noun + 's'}"


def short_count(x: float) -> str:
    """12,345,678 as 12.3 M, for headlines."""
    return decimal(x, "").strip() if abs(x) >= 10_000 else count(x)


def decimal(x: float, unit: str) -> str:
    """Scaled by powers of 1000 to three digits, with the prefix before the unit."""
    if abs(x) >= 1e21:
        return f"{x:.3g} {unit}"
    scale, prefix = next(((s, p) for s, p in _SCALES if abs(x) >= s), (1.0, ""))
    return f"{_three_digits(x / scale)} {prefix}{unit}"


def binary(x: float) -> str:
    """Bytes scaled by powers of 1024."""
    for power, name in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(x) >= 1024**power:
            return f"{_three_digits(x / 1024**power)} {name}"
    return f"{x:,.0f} bytes"


def duration(seconds: float) -> str:
    """A time from microseconds to hours.

    >>> duration(588), duration(7.25), duration(4020)
    ('9 min 48 s', '7.25 s', '1 h 07 min')
    """
    if abs(seconds) < 1e-3:
        return f"{1e6 * seconds:.3g} µs" if seconds else "0 s"
    if abs(seconds) < 1:
        return f"{_three_digits(1e3 * seconds)} ms"
    if abs(seconds) < 60:
        return f"{_three_digits(seconds)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _three_digits(x: float) -> str:
    digits = 2 if abs(x) < 9.995 else 1 if abs(x) < 99.95 else 0
    return f"{x:,.{digits}f}"
