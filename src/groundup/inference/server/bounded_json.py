"""Reading JSON from strangers: UTF-8 only, so deep, numbers so long, no key twice, no NaN and no infinity."""

import json
import math
import re
from typing import Any, NoReturn

from groundup.inference.server.errors import ApiError

MAX_DEPTH = 64
MAX_DIGITS = 32
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]|[\]}]', re.DOTALL)


def read_json(data: bytes) -> dict[str, Any]:
    """The object that `data` is. ApiError 400 for anything else."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 ({error.reason} at byte {error.start})") from None
    _check_depth(text)
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant
        )
    except json.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body is not a JSON object")
    return value


def _check_depth(text: str) -> None:
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        found = match[0]
        if found in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ApiError(400, f"the body is nested more than {MAX_DEPTH} deep")
        elif found in "]}":
            depth -= 1


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1) if len(names) < 1000 else names[0]
        raise ApiError(400, f"the key {twice[:64]!r} is given twice", twice[:64])
    return made


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ApiError(400, f"a number of {len(digits)} digits; at most {MAX_DIGITS}")
    return int(digits)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ApiError(400, f"the number {text[:MAX_DIGITS]} is too large")
    return value


def _constant(text: str) -> NoReturn:
    raise ApiError(400, f"{text} is not JSON")
