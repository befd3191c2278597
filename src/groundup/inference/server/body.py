"""A request's body as JSON, with bounds that are checked before anything is built from it."""

import json
from typing import Any, NoReturn

from groundup.inference.server.errors import ApiError


def parse(body: bytes, max_depth: int) -> dict[str, Any]:
    """The JSON object of a body. ApiError (400) for anything else, for keys that are there twice, numbers that are not
    finite or have thousands of digits, and nesting deeper than `max_depth`."""
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 (byte {error.start})", code="invalid_json") from None
    except RecursionError:
        raise ApiError(400, f"the body is nested deeper than {max_depth} levels", code="invalid_json") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ApiError(400, f"the body is not JSON: {error.msg} ({where})", code="invalid_json") from None
    except ValueError:
        raise ApiError(400, "the body has a number with thousands of digits", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body is not a JSON object", code="invalid_json")
    if body.count(b"[") + body.count(b"{") > max_depth:
        check_depth(value, max_depth)
    return {name: item for name, item in value.items() if item is not None}


def check_depth(value: Any, max_depth: int) -> None:
    """ApiError for lists and objects in more than `max_depth` levels."""
    level = [value]
    for _ in range(max_depth):
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)
                 if isinstance(inner, (dict, list))]  # fmt: skip
        if not level:
            return
    raise ApiError(400, f"the body is nested deeper than {max_depth} levels", code="invalid_json")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise ApiError(400, f"{twice[:80]!r} is there twice", param=twice[:80], code="invalid_json")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ApiError(400, f"{name} is not a number of JSON", code="invalid_json")
