"""From a request's fields to the parameters of sampling, one set for each of its n answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from groundup.config import nearest
from groundup.inference.sampling import SamplingParams
from groundup.inference.server.errors import ApiError, field_error
from groundup.inference.server.schemas import ChatRequest, CompletionRequest, NamedTool, Sampling, Tool
from groundup.inference.server.tools import call_schema

Compile = Callable[[str, Any], Any]
"""(kind, source) -> a new Constraint; ValueError for what is wrong or too expensive."""

FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True)
class Wanted:
    """How each of `params` is to be drawn, and how many alternatives are shown of each token (None: no logprobs)."""

    params: list[SamplingParams]
    top: int | None
    constraint: tuple[str, Any] | None


def wanted(request: Sampling, context_length: int) -> Wanted:
    """What to ask of the engine. ApiError naming the field that makes no sense."""
    if isinstance(request, CompletionRequest):
        top, most = request.logprobs, request.max_tokens
        if request.best_of not in (None, 1, request.n):
            raise field_error("best_of: only equal to n", "best_of")
    else:
        assert isinstance(request, ChatRequest)
        top = request.top_logprobs or 0 if request.logprobs else None
        if request.top_logprobs and not request.logprobs:
            raise field_error("top_logprobs: needs logprobs=true", "top_logprobs")
        most = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    most = context_length if most is None else min(most, context_length)
    settings: dict[str, Any] = {name: getattr(request, name) for name in FIELDS}
    settings |= {"logit_bias": _biases(request.logit_bias), "logprobs": 0 if top is None else max(top, 1)}
    seeds = [None if request.seed is None else request.seed % 2**63 + place for place in range(request.n)]
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)
    try:
        params = [SamplingParams(max_tokens=most, seed=seed and seed % 2**63, stop=stop, **settings) for seed in seeds]
    except ValueError as error:
        raise field_error(str(error), str(error).partition("=")[0]) from None
    return Wanted(params, top, _constraint(request))


def _biases(given: dict[str, float]) -> dict[int, float]:
    for key in given:
        if not key.isascii() or not key.isdigit() or len(key) > 10:
            raise field_error(f"logit_bias: {key[:20]!r} is not a token id", "logit_bias")
    return {int(key): bias for key, bias in given.items()}


def _constraint(request: Sampling) -> tuple[str, Any] | None:
    form = request.response_format
    found: list[tuple[str, Any]] = []
    if form.type == "json_object":
        found.append(("json_object", None))
    if form.type == "json_schema":
        if form.json_schema is None:
            raise field_error("response_format.json_schema: missing", "response_format.json_schema")
        found.append(("json_schema", form.json_schema.json_schema))
    if request.guided_choice is not None:
        found.append(("choice", request.guided_choice))
    if request.guided_regex is not None:
        found.append(("regex", request.guided_regex))
    if isinstance(request, ChatRequest) and (tools := must_be_called(request)):
        found.append(("tool_choice", call_schema([(tool.function.name, tool.function.parameters) for tool in tools])))
    if len(found) > 1:
        words = "response_format, guided_choice, guided_regex and a tool_choice that is required exclude each other"
        raise field_error(words, "tool_choice" if found[-1][0] == "tool_choice" else "response_format")
    return found[0] if found else None


def must_be_called(request: ChatRequest) -> list[Tool]:
    """The tools of which the answer has to call one; none where it may be a text."""
    choice = request.tool_choice
    if choice in ("none", "auto"):
        return []
    names = [tool.function.name for tool in request.tools]
    if not names:
        raise field_error("tool_choice: there are no tools to call", "tool_choice")
    if not isinstance(choice, NamedTool):
        return request.tools
    if choice.function.name not in names:
        wrong = choice.function.name[:64]
        raise field_error(f"tool_choice: {wrong!r} is none of the tools{nearest(wrong, names)}", "tool_choice")
    return [tool for tool in request.tools if tool.function.name == choice.function.name]


def compiled(constraint: tuple[str, Any], compile_constraint: Compile | None) -> Any:
    """A new Constraint. ApiError when it is wrong, or there are none in this server."""
    kind, source = constraint
    param = {"choice": "guided_choice", "regex": "guided_regex", "tool_choice": "tool_choice"}.get(
        kind, "response_format"
    )
    if compile_constraint is None:
        raise field_error(f"{param}: constrained answers are not available with this engine", param)
    try:
        return compile_constraint("json_schema" if kind == "tool_choice" else kind, source)
    except ValueError as error:
        raise ApiError(400, f"{param}: {str(error)[:300]}", param) from None
