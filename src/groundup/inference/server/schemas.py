"""What requests may say. A field that is not here is an error that names it; the few of `HARMLESS` change no answer."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from groundup.config import nearest
from groundup.inference.server.errors import ApiError, field_error

HARMLESS = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
)

Real = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=1 << 20)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Choices = Annotated[list[Text], Field(min_length=1, max_length=4096)]


class Strict(BaseModel):
    """No conversions: "1" is no number, and 1 is no text. A null is a field that is not there, as clients send back
    what they were given."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


class StreamOptions(Strict):
    """With `include_usage`, a last chunk tells the tokens."""

    include_usage: bool = False


class JSONSchema(Strict):
    """A schema that the answer follows."""

    name: str = ""
    description: str = ""
    json_schema: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool = True


class ResponseFormat(Strict):
    """What the answer is made of."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None


class Sampling(Strict):
    """What both endpoints share. The limits on each value are those of SamplingParams."""

    model: str | None = None
    temperature: Real = 1.0
    top_p: Real | None = None
    top_k: int | None = None
    min_p: Real | None = None
    repetition_penalty: Real = 1.0
    presence_penalty: Real = 0.0
    frequency_penalty: Real = 0.0
    logit_bias: dict[str, Real] = Field(default_factory=dict)
    n: Annotated[int, Field(ge=1, le=128)] = 1
    seed: int | None = None
    stop: Text | Annotated[list[Text], Field(max_length=64)] = Field(default_factory=list)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    response_format: ResponseFormat = ResponseFormat(type="text")
    guided_choice: Choices | None = None
    guided_regex: Annotated[str, Field(max_length=4096)] | None = None


class CompletionRequest(Sampling):
    """POST /v1/completions."""

    prompt: Text | list[TokenId] | list[Text] | list[list[TokenId]] = ""
    max_tokens: Annotated[int, Field(ge=0)] = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False
    best_of: int | None = None
    suffix: Literal[""] | None = None


class TextPart(Strict):
    """A piece of a message. Other kinds (images, audio, files) are not understood."""

    type: Literal["text", "input_text"]
    text: Text


class FunctionCall(Strict):
    """What an earlier answer called."""

    name: str
    arguments: str


class ToolCall(Strict):
    """A call in an earlier answer."""

    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    name: str | None = None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Function(Strict):
    """A function that the model is told of."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    strict: bool | None = None


class Tool(Strict):
    """A tool is a function; there are no others."""

    type: Literal["function"]
    function: Function


class FunctionName(Strict):
    """Of a function of `tools`."""

    name: str


class NamedTool(Strict):
    """The tool that has to be called."""

    type: Literal["function"]
    function: FunctionName


class ChatRequest(Sampling):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Tool] = Field(default_factory=list)
    tool_choice: Literal["none", "auto", "required"] | NamedTool = "auto"


def validated(kind: type[Strict], given: dict[str, Any]) -> Any:
    """The request that `given` says. ApiError naming the first field that is wrong."""
    known = set(kind.model_fields)
    for name in given:
        if name not in known and name not in HARMLESS:
            raise field_error(f"{name[:80]}: this server has no such field{nearest(name[:80], known)}", name[:80],
                              "unknown_parameter")  # fmt: skip
    try:
        return kind.model_validate({name: value for name, value in given.items() if name in known})
    except ValidationError as error:
        raise _as_api_error(error) from None


def _as_api_error(error: ValidationError) -> ApiError:
    """The error of the field that pydantic followed deepest: in a union, the variant that was meant."""
    first = max(error.errors(include_url=False, include_input=False), key=lambda e: len(e["loc"]))
    name = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"] if not _is_variant(part)
    ).lstrip(".")[:200]
    message = "not a field of it" if first["type"] == "extra_forbidden" else first["msg"]
    return field_error(f"{name}: {message[:200]}", name)


def _is_variant(part: Any) -> bool:
    """pydantic names the members of unions in its paths: `constrained-str`, `list[int]`."""
    return isinstance(part, str) and (part in ("str", "int", "TextPart", "NamedTool") or "[" in part or "-" in part)
