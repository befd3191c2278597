"""Typed configuration: frozen dataclasses to JSON and back, dotted overrides, did-you-mean errors."""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable
from typing import Any


def nearest(name: str, options: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, or all of them when none is near.

    >>> nearest("num_head", ["num_heads", "d_head"])
    "; did you mean 'num_heads'?"
    """
    known = sorted(set(options))
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of: {', '.join(known)}"


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

    Values are JSON; what is not JSON is taken as a string.
    """
    data = to_dict(config)
    for assignment in assignments:
        key, equals, raw = assignment.partition("=")
        if not equals:
            raise ValueError(f"override {assignment!r}: expected key=value")
        _assign(data, key, _parse(raw))
    return from_dict(type(config), data, type(config).__name__)


def _parse(raw: str) -> Any:
    try:
        return json.loads(raw)
    except json.JSONDecodeError:
        return raw


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
        if key not in fields:
            raise ValueError(f"{path}.{key}: {cls.__name__} has no such field{nearest(key, fields)}")
        values[key] = from_dict(hints[key], value, f"{path}.{key}")
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
        raise ValueError(f"{path}: {data!r} is not {_describe(kind)}")


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
    names = []
    for member in _members(kind):
        if typing.get_origin(member) is typing.Literal:
            names.append("one of " + ", ".join(map(repr, typing.get_args(member))))
        else:
            names.append(getattr(member, "__name__", str(member)))
    return " or ".join(names)
