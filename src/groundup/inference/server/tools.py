"""Calls of functions in a model's answer: `{"name": ..., "arguments": {...}}`, alone or between <tool_call> tags.

Where the model may choose, `CallReader` finds out at the end whether it has called. Where it has to call, its answer is
held to `call_schema` while it is written, and `ForcedCall` hands the arguments on as they come.
"""

import json
import re
import secrets
from collections.abc import Collection, Sequence
from typing import Any

from groundup.inference.server.errors import field_error

TAG = "<tool_call>"
_FORCED = re.compile(r'\s*\{\s*"name"\s*:\s*"([A-Za-z0-9_.-]+)"\s*,\s*"arguments"\s*:\s*(?=\{)')
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


class CallReader:
    """Passes text on, unless it begins like a call: that is held until the end shows what it is.

    >>> reader = CallReader({"add"})
    >>> reader.push('{"name": "add", "arguments": '), reader.push('{"a": 1}}')
    ('', '')
    >>> text, calls = reader.finish()
    >>> text, calls[0]["function"]
    ('', {'name': 'add', 'arguments': '{"a": 1}'})
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names, self._held = names, ""
        self._holding = bool(names)

    def push(self, text: str) -> str:
        """What of the text so far can be shown."""
        if not self._holding:
            return text
        self._held += text
        begun = self._held.lstrip()
        if not begun or begun.startswith(("{", TAG)) or TAG.startswith(begun):
            return ""
        self._holding = False
        return self._held

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """The rest of the text, and the calls if it was some."""
        if not self._holding:
            return "", []
        bodies = _CALL.findall(self._held) or [self._held]
        calls = [call for body in bodies if (call := self._call(body)) is not None]
        return ("", calls) if len(calls) == len(bodies) else (self._held, [])

    def _call(self, body: str) -> dict[str, Any] | None:
        try:
            given = json.loads(body)
        except (ValueError, RecursionError):
            return None
        if not isinstance(given, dict) or given.get("name") not in self._names:
            return None
        arguments = json.dumps(given.get("arguments", given.get("parameters", {})), ensure_ascii=False)
        return new_call(given["name"], arguments)


class ForcedCall:
    """The pieces of an answer that follows `call_schema`, as deltas of one call: its name, then its arguments' text.

    >>> call = ForcedCall()
    >>> call.push('{"name": "add", "arg'), call.push('uments": {"a": 1')[0]["function"], call.push("}}")
    ([], {'name': 'add', 'arguments': '{"a": 1'}, [{'function': {'arguments': '}'}}])
    >>> call.ended
    True
    """

    def __init__(self) -> None:
        self._held: str | None = ""  # what has come before the arguments; None behind their beginning
        self._depth, self._in_string, self._escaped = 0, False, False
        self.ended = False

    def push(self, text: str) -> list[dict[str, Any]]:
        """What of the text is part of the call; often nothing."""
        if self._held is not None:
            self._held += text
            begun = _FORCED.match(self._held)
            if begun is None:
                return []
            rest, self._held = self._held[begun.end() :], None
            return [new_call(begun[1], self._within(rest))]
        arguments = self._within(text)
        return [{"function": {"arguments": arguments}}] if arguments else []

    def _within(self, text: str) -> str:
        """The text up to the brace that ends the arguments."""
        if self.ended:
            return ""
        for place, character in enumerate(text):
            if self._in_string:
                self._in_string = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
            elif character == '"':
                self._in_string = True
            self._depth += 0 if self._in_string else {"{": 1, "}": -1}.get(character, 0)
            if self._depth == 0:
                self.ended = True
                return text[: place + 1]
        return text


def new_call(name: str, arguments: str) -> dict[str, Any]:
    """A call as the API writes it."""
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


def call_schema(functions: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """The JSON schema of a call of one of these (name, schema of its arguments). ApiError where those are no object."""
    calls = []
    for place, (name, parameters) in enumerate(functions):
        if parameters.get("type", "object") != "object":
            raise field_error(f"tools[{place}].function.parameters: expected the type 'object'", "tools")
        inner = {"type": "object", **_moved(parameters, f"#/anyOf/{place}/properties/arguments")}
        fields = {"name": {"const": name}, "arguments": inner}
        calls.append({"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False})
    return {"anyOf": calls}


def _moved(schema: Any, to: str) -> Any:
    """A schema whose references into itself hold where it stands in another one."""
    if isinstance(schema, list):
        return [_moved(item, to) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: to + value[1:] if key == "$ref" and isinstance(value, str) and value[:1] == "#" else _moved(value, to)
        for key, value in schema.items()
    }
