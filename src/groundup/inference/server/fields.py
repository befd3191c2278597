"""From the JSON of a request to what is asked: every field checked, and the unknown ones named.

A field of the API that is not offered here is an error that names it, unless its value asks for nothing (`null`, an
empty list, the default) or it could not change the answer (`user`, `metadata`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from groundup.config import nearest
from groundup.inference.sampling import SamplingParams
from groundup.inference.server.errors import ApiError
from groundup.inference.server.settings import ServerSettings

MAX_LOGPROBS = 20
COMPLETION_TOKENS = 16  # the API's default for completions; a chat's answer may fill the context
UNBOUNDED = 2**31

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty",
            "repetition_penalty", "logit_bias")  # fmt: skip
SHARED = (*SAMPLING, "model", "n", "stream", "stream_options", "max_tokens", "logprobs", "response_format")
COMPLETION = frozenset({*SHARED, "prompt", "echo"})
CHAT = frozenset({*SHARED, "messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice"})
HARMLESS = frozenset({"user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls",
                      "prompt_cache_retention"})  # fmt: skip
NEUTRAL = {
    "store": (False,),
    "suffix": ("",),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none",),
}
REFUSED = {
    "chat_template": "a chat template is part of the model, and clients do not bring one",
    "chat_template_kwargs": "a chat template is part of the model, and clients do not set its variables",
}


@dataclass(frozen=True)
class Call:
    """What a request asks for. `tops` is how many likely tokens to list beside each one; None: no log-probabilities."""

    params: SamplingParams
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    tops: int | None = None
    response_format: Mapping[str, Any] = field(default_factory=dict)


def check_names(body: Mapping[str, Any], known: frozenset[str], model_name: str) -> dict[str, Any]:
    """The fields that ask for something. ApiError 400 for one that is not offered, 404 for another model."""
    asked = {name: value for name, value in body.items() if value is not None}
    for name, value in asked.items():
        if name in known or name in HARMLESS or value in NEUTRAL.get(name, ()):
            continue
        if name in REFUSED:
            raise ApiError(400, f"{name}: {REFUSED[name]}", name)
        raise ApiError(400, f"{name[:64]}: not supported here{nearest(name[:64], known)}", name[:64])
    model = asked.get("model", model_name)
    if not isinstance(model, str):
        raise ApiError(400, f"model: expected a text, not {kind_of(model)}", "model")
    if model != model_name:
        raise ApiError(404, f"model: there is no {model[:64]!r} here, only {model_name!r}", "model",
                       code="model_not_found")  # fmt: skip
    return asked


def completion_call(asked: Mapping[str, Any], settings: ServerSettings) -> Call:
    """The settings of /v1/completions, where `logprobs` is how many likely tokens to list."""
    tops = _whole(asked, "logprobs", None, 0, MAX_LOGPROBS)
    limit = _whole(asked, "max_tokens", COMPLETION_TOKENS, 0, None)
    return _call(asked, settings, tops, limit)


def chat_call(asked: Mapping[str, Any], settings: ServerSettings) -> Call:
    """The settings of /v1/chat/completions, where `logprobs` switches them on and `top_logprobs` says how many."""
    tops = _whole(asked, "top_logprobs", 0, 0, MAX_LOGPROBS)
    wanted = flag(asked, "logprobs")
    if tops and not wanted:
        raise ApiError(400, "top_logprobs: it needs logprobs=true", "top_logprobs")
    name = "max_completion_tokens" if "max_completion_tokens" in asked else "max_tokens"
    return _call(asked, settings, tops if wanted else None, _whole(asked, name, UNBOUNDED, 0, None))


def _call(asked: Mapping[str, Any], settings: ServerSettings, tops: int | None, max_tokens: int | None) -> Call:
    given = {name: asked[name] for name in SAMPLING if name in asked}
    if "logit_bias" in given:
        given["logit_bias"] = _biases(given["logit_bias"])
    try:
        params = SamplingParams(
            max_tokens=min(max_tokens or 0, UNBOUNDED), logprobs=0 if tops is None else max(1, tops), **given
        )
    except ValueError as error:
        name = str(error).partition("=")[0]
        raise ApiError(400, str(error), name if name in SAMPLING else None) from None
    stream = flag(asked, "stream")
    return Call(
        params,
        n=_whole(asked, "n", 1, 1, settings.max_choices) or 1,
        stream=stream,
        include_usage=_include_usage(asked, stream),
        tops=tops,
        response_format=_response_format(asked),
    )


def _biases(value: Any) -> dict[int, Any]:
    """JSON has only texts as keys."""
    try:
        return {int(token): bias for token, bias in value.items()}
    except (AttributeError, ValueError):
        raise ApiError(400, "logit_bias: expected an object from token ids to numbers", "logit_bias") from None


def _include_usage(asked: Mapping[str, Any], stream: bool) -> bool:
    options = asked.get("stream_options")
    if options is None:
        return False
    if not stream:
        raise ApiError(400, "stream_options: it needs stream=true", "stream_options")
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        raise ApiError(400, "stream_options: expected an object with include_usage", "stream_options")
    return flag(options, "include_usage")


def _response_format(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    value = asked.get("response_format", {"type": "text"})
    kinds: dict[str, Callable[[], Mapping[str, Any]]] = {
        "text": lambda: {},
        "json_object": lambda: {"kind": "json_object", "source": {}},
        "json_schema": lambda: {"kind": "json_schema", "source": _inner(value, "json_schema", "schema", dict)},
        "regex": lambda: {"kind": "regex", "source": _inner(value, "regex", None, str)},
        "choice": lambda: {"kind": "choice", "source": _inner(value, "choice", None, list)},
    }
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise ApiError(400, f"response_format: expected a type of {', '.join(kinds)}", "response_format")
    return kinds[kind]()


def _inner(value: Mapping[str, Any], name: str, key: str | None, kind: type) -> Any:
    inner = value.get(name)
    if key is not None:
        inner = inner.get(key) if isinstance(inner, dict) else None
    if not isinstance(inner, kind):
        place = name if key is None else f"{name}.{key}"
        raise ApiError(400, f"response_format: {place} is {kind_of(inner)}", "response_format")
    return inner


def flag(asked: Mapping[str, Any], name: str) -> bool:
    """A field that is true or false; false where it is absent."""
    value = asked.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{name}: expected true or false, not {kind_of(value)}", name)
    return bool(value)


def _whole(asked: Mapping[str, Any], name: str, default: int | None, least: int, most: int | None) -> int | None:
    value = asked.get(name, default)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ApiError(400, f"{name}={str(value)[:40]}; expected an integer {bounds}", name)
    return value


def kind_of(value: Any) -> str:
    """What a value of JSON is, in words."""
    names = {str: "a text", bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), "nothing")
