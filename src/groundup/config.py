"""Typed configuration: frozen dataclasses to JSON and back, dotted overrides, and words for messages."""

import ast
import contextlib
import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

# A type -> what a person calls it.
TYPE_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    dict: "an object",
    type(None): "null",
}
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
ANSWERS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


class Typed(str):
    """What a person wrote after `key=`. How it is read depends on the type that is wanted there."""


def plural(count: int, noun: str, many: str = "") -> str:
    """A number with its noun.

    >>> plural(1, "layer"), plural(1200, "layer"), plural(0, "entry", "entries")
    ('1 layer', '1,200 layers', '0 entries')
    """
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def near(name: str, options: Iterable[str], most: int = 1) -> str:
    """The end of an error message: the nearest known names, or nothing when none is near.

    >>> near("num_head", ["num_heads", "d_head"]), near("x", ["num_heads"])
    ("; did you mean 'num_heads'?", '')
    """
    known = {option.lower(): option for option in sorted(set(options), reverse=True)}
    close = difflib.get_close_matches(name.lower(), known, n=most)
    return f"; did you mean {' or '.join(repr(known[c]) for c in close)}?" if close else ""


def nearest(name: str, options: Iterable[str]) -> str:
    """The same for a choice of few: all of them when none is near."""
    known = sorted(set(options))
    return near(name, known) or f"; expected one of: {', '.join(known)}"


def to_dict(value: Any) -> Any:
    """Dataclass to plain data. Every dataclass carries its class name as `kind`, so unions round-trip."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, (tuple, list)):
        return [to_dict(v) for v in value]
    return value


def from_dict(kind: Any, data: Any, path: str = "config") -> Any:
    """Plain data to the annotated type `kind` (a dataclass, a union of them, or a field's annotation).

    Raises ValueError that names the dotted path, what stands there, and what is allowed.
    """
    if isinstance(data, Typed):
        return _from_typed(kind, str(data), path)
    if isinstance(data, dict) and (classes := _dataclasses_in(kind)):
        return _build(_choose(classes, data, path), data, path)
    if isinstance(data, (list, tuple)):
        element = (typing.get_args(_first(kind, tuple, list)) or (Any,))[0]
        _check(kind, data, path)
        return tuple(from_dict(element, v, f"{path}[{i}]") for i, v in enumerate(data))
    _check(kind, data, path)
    return float(data) if isinstance(data, int) and _wants_float(kind, data) else data


def override(config: Any, *assignments: str) -> Any:
    """A new config with dotted keys replaced: `override(c, "blocks.0.mixer.num_kv_heads=2")`.

    A value is JSON, or as people write it where its type allows: `yes` and `off`, text without quotes, a list with
    commas.
    """
    data = to_dict(config)
    for assignment in assignments:
        key, equals, raw = assignment.partition("=")
        if not equals:
            raise ValueError(f"override {assignment!r}: expected key=value")
        _assign(data, key, _parse(raw))
    return from_dict(type(config), data, "")


def separate_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split `FILES|key=value` words. A name, dotted or not, with `=` after it is an override unless a file is
    called just that."""
    overrides = [w for w in words if re.match(r"[\w.-]+=", w) and not Path(w).exists()]
    return [w for w in words if w not in overrides], overrides


def parse_seconds(text: str) -> float:
    """`90s`, `10m`, `1.5h` or a bare number of seconds.

    >>> parse_seconds("10m"), parse_seconds("90")
    (600.0, 90.0)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    if not match:
        raise ValueError(f"--budget {text!r}: expected a time such as 90s, 10m or 1.5h")
    return float(match[1]) * UNITS[match[2] or "s"]


def _parse(raw: str) -> Any:
    """JSON objects and lists as such, so that a later key can reach into them; the rest waits for its type."""
    value = next(_readings(raw))
    return value if isinstance(value, (dict, list)) else Typed(raw)


def _readings(raw: str) -> Iterator[Any]:
    """All that a typed word can mean, the likeliest first."""
    with contextlib.suppress(ValueError, RecursionError):
        yield json.loads(raw)
    if raw.lower() in ANSWERS:
        yield ANSWERS[raw.lower()]
    yield raw
    yield [Typed(word) for word in raw.split(",")]


def _from_typed(kind: Any, raw: str, path: str) -> Any:
    for value in _readings(raw):
        if any(_fits(member, value) for member in _members(kind)):
            return from_dict(kind, value, path)
    raise ValueError(f"{path}: expected {_describe(kind)}, not {raw!r}")


def _assign(data: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    node = data
    for part in parents:
        node = node[_index(node, part, key)]
        if not isinstance(node, (dict, list)):
            raise ValueError(f"override {key}: {part!r} holds {node!r}, which has nothing inside it")
    node[_index(node, last, key)] = value


def _index(node: Any, part: str, key: str) -> Any:
    if isinstance(node, list):
        if not part.isdecimal() or int(part) >= len(node):
            raise ValueError(f"override {key}: {part!r} is not an index below {len(node)}")
        return int(part)
    if part not in node:
        raise ValueError(f"override {key}: no field {part!r}{nearest(part, node)}")
    return part


def _members(kind: Any) -> tuple[Any, ...]:
    is_union = isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union
    return typing.get_args(kind) if is_union else (kind,)


def _dataclasses_in(kind: Any) -> dict[str, type]:
    return {m.__name__: m for m in _members(kind) if dataclasses.is_dataclass(m) and isinstance(m, type)}


def _choose(classes: dict[str, type], data: dict, path: str) -> type:
    name = data.get("kind", next(iter(classes)) if len(classes) == 1 else None)
    if name not in classes:
        raise ValueError(f"{path}: kind {name!r}{nearest(str(name), classes)}")
    return classes[name]


def _build(cls: type, data: dict, path: str) -> Any:
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    values = {}
    for key, value in data.items():
        if key == "kind":
            continue
        inner = f"{path}.{key}" if path else key
        if key not in fields:
            raise ValueError(f"{inner}: {cls.__name__} has no such field{nearest(key, fields)}")
        values[key] = from_dict(hints[key], value, inner)
    missing = [n for n, f in fields.items() if n not in values and _required(f)]
    if missing:
        raise ValueError(f"{path}: {cls.__name__} needs {', '.join(missing)}")
    return cls(**values)


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _first(kind: Any, *origins: type) -> Any:
    return next((m for m in _members(kind) if typing.get_origin(m) in origins), kind)


def _wants_float(kind: Any, data: Any) -> bool:
    members = _members(kind)
    return type(data) is int and float in members and int not in members


def _check(kind: Any, data: Any, path: str) -> None:
    if not any(_fits(member, data) for member in _members(kind)):
        raise ValueError(f"{path}: expected {_describe(kind)}, not {data!r}")


def _fits(kind: Any, data: Any) -> bool:
    if kind is Any or kind is None or kind is type(None):
        return kind is Any or data is None
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return data in typing.get_args(kind)
    if origin in (tuple, list):
        return isinstance(data, (list, tuple))
    if origin is dict or kind is dict:
        return isinstance(data, dict)
    if kind is float:
        return isinstance(data, (int, float)) and not isinstance(data, bool)
    if kind is int:
        return isinstance(data, int) and not isinstance(data, bool)
    return isinstance(data, kind) if isinstance(kind, type) and not dataclasses.is_dataclass(kind) else False


def _describe(kind: Any) -> str:
    """What is allowed, in words. That null is allowed too goes without saying."""
    members = [m for m in _members(kind) if m is not type(None)] or [type(None)]
    return " or ".join(map(_in_words, members))


def _in_words(kind: Any) -> str:
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, inside))
    if origin in (tuple, list):
        return f"a list ({_describe(inside[0])})"
    return TYPE_WORDS.get(origin or kind, getattr(kind, "__name__", str(kind)))


def declared(module: str, name: str) -> tuple[dict[str, Any], str]:
    """(field -> default, docstring) of a dataclass of this package, its bases' fields first, read from its source.

    Nothing is imported, so that --help can show settings that stand next to heavy imports. Defaults are literals.
    """
    package = Path(__file__).parent.parent
    tree = ast.parse(package.joinpath(*module.split(".")).with_suffix(".py").read_text("utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    origin = {alias.name: node.module or module for node in imports for alias in node.names}
    made = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    bases = [base.id for base in made.bases if isinstance(base, ast.Name)]
    fields = {key: value for base in bases for key, value in declared(origin.get(base, module), base)[0].items()}
    for node in made.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            fields[node.target.id] = ast.literal_eval(node.value)
    return fields, ast.get_docstring(made) or ""
