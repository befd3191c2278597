"""Calls of functions in a model's answer: `{"name": ..., "arguments": {...}}`, alone or between <tool_call> tags."""

import json
import re
import secrets
from collections.abc import Collection
from typing import Any

TAG = "<tool_call>"
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
        function = {"name": given["name"], "arguments": arguments}
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
