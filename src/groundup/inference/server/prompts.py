"""From texts, ids and conversations to token ids, on a thread beside the event loop, after a check of size.

No text of a client becomes a control token: contents, tool names, descriptions and schemas are encoded as plain text.
"""

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from groundup.inference.server.body import check_depth
from groundup.inference.server.errors import ApiError, field_error
from groundup.inference.server.schemas import ChatRequest, CompletionRequest, Message
from groundup.inference.server.settings import Settings
from groundup.tokenizer.chat import render

Result = TypeVar("Result")

MAX_ARGUMENT_DEPTH = 32
TOOLS_TEXT = (
    "You may call one of these functions. To call one, answer with nothing but a JSON object "
    '{"name": its name, "arguments": an object}.\n'
)


class Prompts:
    """Encodes what clients send, for one engine."""

    def __init__(self, engine: Any, settings: Settings) -> None:
        self._engine, self._settings = engine, settings
        self._worker = ThreadPoolExecutor(1, "groundup-tokenizer")
        longest = max((len(token) for token in engine.tokenizer.vocab.values()), default=1)
        # No shorter text can hold more tokens than the context; a normaliser may make a text a third as long.
        self.max_bytes = engine.context_length * longest * (3 if engine.tokenizer.normalizer else 1)

    def close(self) -> None:
        """End the thread."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def run(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """`function(*arguments)` on the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)

    def of_completion(self, request: CompletionRequest) -> list[list[int]]:
        """The ids of each prompt. ApiError for one that cannot fit."""
        given: Any = request.prompt
        single = isinstance(given, str) or (len(given) > 0 and isinstance(given[0], int))
        prompts = [given] if single else given
        if not prompts:
            raise field_error("prompt: an empty list", "prompt")
        if len(prompts) * request.n > self._settings.max_choices:
            most = self._settings.max_choices
            raise field_error(f"prompt: {len(prompts)} prompts times n={request.n}; at most {most} together", "prompt")
        return [self._ids(prompt) for prompt in prompts]

    def of_chat(self, request: ChatRequest) -> list[int]:
        """The ids of a conversation, up to where the assistant speaks."""
        if not self._engine.can_chat:
            raise field_error("this model has no form of conversations; use /v1/completions", "messages")
        if len(request.messages) > self._settings.max_messages:
            raise field_error(f"messages: more than {self._settings.max_messages}", "messages")
        if len(request.tools) > self._settings.max_tools:
            raise field_error(f"tools: more than {self._settings.max_tools}", "tools")
        messages = [_plain(message, place) for place, message in enumerate(request.messages)]
        tools = [] if request.tool_choice == "none" else [tool.model_dump(exclude_none=True) for tool in request.tools]
        self._check_size(sum(len(m["content"]) for m in messages) + len(json.dumps(tools)), "messages")
        try:
            ids = self._conversation(messages, tools)
        except ValueError as error:
            raise field_error(f"messages: {str(error)[:300]}", "messages") from None
        return self._fitting(ids, "messages")

    def _conversation(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[int]:
        tokenizer, template = self._engine.tokenizer, self._engine.chat_template
        if tools and (template is None or "tools" not in template.source):
            messages, tools = _with_tools(messages, tools), []
        if template is None:
            return render(tokenizer, messages, add_generation_prompt=True)[0]
        return template.encode(tokenizer, messages, tools=tools or None)

    def _ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            self._check_size(len(prompt), "prompt")
        tokenizer = self._engine.tokenizer
        ids = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return self._fitting(ids or [tokenizer.end_of_text], "prompt")

    def _check_size(self, characters: int, param: str) -> None:
        if characters > self.max_bytes:
            raise self._too_long(f"{characters} characters", param)

    def _fitting(self, ids: list[int], param: str) -> list[int]:
        vocab = self._engine.model.config.vocab_size
        wrong = next((i for i in ids if i >= vocab), None)
        if wrong is not None:
            raise field_error(f"{param}: id {wrong} is not in the vocabulary (0 to {vocab - 1})", param)
        if len(ids) > self._engine.context_length:
            raise self._too_long(f"{len(ids)} tokens", param)
        return ids

    def _too_long(self, what: str, param: str) -> Exception:
        context = self._engine.context_length
        return field_error(f"{param}: {what} do not fit the model's context of {context} tokens", param,
                           "context_length_exceeded")  # fmt: skip


def _plain(message: Message, place: int) -> dict[str, Any]:
    """A message as templates know it."""
    content = message.content
    text = "".join(part.text for part in content) if isinstance(content, list) else content or ""
    if content is None and not (message.role == "assistant" and message.tool_calls):
        raise field_error(f"messages[{place}].content: missing", f"messages[{place}].content")
    plain: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role, "content": text}
    if message.tool_calls:
        plain["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.function.name, "arguments": _arguments(c, place)}}
            for c in message.tool_calls
        ]
    return plain


def _arguments(call: Any, place: int) -> Any:
    """A call's arguments, which templates want as an object, and clients send as its JSON."""
    try:
        value = json.loads(call.function.arguments)
        check_depth(value, MAX_ARGUMENT_DEPTH)
        return value
    except (ValueError, RecursionError, ApiError):
        param = f"messages[{place}].tool_calls"
        raise field_error(
            f"{param}: the arguments of {call.function.name[:64]!r} are not JSON of few levels", param
        ) from None


def _with_tools(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation of a model whose template knows no tools: they are told in the system message."""
    told = TOOLS_TEXT + "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    first, rest = (messages[0], messages[1:]) if messages[0]["role"] == "system" else (None, messages)
    system = {"role": "system", "content": f"{first['content']}\n\n{told}" if first else told}
    return [system, *map(_spoken, rest)]


def _spoken(message: dict[str, Any]) -> dict[str, Any]:
    """Calls and results as the turns of a plain conversation."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"Result of the function:\n{message['content']}"}
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.pop("tool_calls", [])]
    return {**message, "content": "\n".join(filter(None, [message["content"], *calls]))}
