"""Answers that follow a form, through the server: JSON, a schema, a choice, an expression; and tools."""

import functools
import json
from typing import Any

import openai
import pytest

from groundup.inference.constraint import compile_constraint
from groundup.inference.server import Settings
from groundup.inference.server.tools import CallReader
from tests.inference.server.serving import events_of, new_engine, running_server

SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2]}, "b": {"type": "boolean"}},
          "required": ["a", "b"], "additionalProperties": False}  # fmt: skip
CHAT = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def formed(engine):
    compile_ours = functools.partial(compile_constraint, tokenizer=engine.tokenizer, end_ids=engine.end_ids)
    with running_server(new_engine(2048), Settings(), compile_constraint=compile_ours) as server:
        yield server


def test_a_schema_is_followed(formed):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    body = {"messages": CHAT, "response_format": form, "n": 4, "seed": 1, "max_tokens": 80}
    status, answer = formed.post("/v1/chat/completions", body)
    assert status == 200, answer
    for choice in answer["choices"]:
        said = json.loads(choice["message"]["content"])
        assert (said["a"] in (1, 2), type(said["b"]), len(said)) == (True, bool, 2)
        assert choice["finish_reason"] == "stop"


def test_choices_and_expressions(formed):
    for seed in range(3):
        body = {"prompt": "the", "max_tokens": 20, "seed": seed}
        chosen = formed.post("/v1/completions", body | {"guided_choice": ["yes", "no", "maybe"]})[1]["choices"][0]
        assert chosen["text"] in ("yes", "no", "maybe")
        digits = formed.post("/v1/completions", body | {"guided_regex": "[0-9]{3}-x"})[1]["choices"][0]
        assert (len(digits["text"]), digits["text"][3:]) == (5, "-x")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("guided_regex", "(unclosed"),
        ("guided_regex", "(a{1,999}){1,999}{1,999}"),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://evil/x"}}}),
        ("response_format", {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}),
    ],
)
def test_a_form_that_is_wrong(formed, field, value):
    status, answer = formed.post("/v1/completions", {"prompt": "a", "max_tokens": 2, field: value})
    assert (status, answer["error"]["param"]) == (400, field)


def test_two_forms_exclude_each_other(formed):
    both = {"prompt": "a", "guided_choice": ["a"], "guided_regex": "a"}
    assert formed.post("/v1/completions", both)[0] == 400


def test_a_server_without_forms_says_so(server):
    status, answer = server.post("/v1/completions", {"prompt": "a", "response_format": {"type": "json_object"}})
    assert (status, answer["error"]["param"]) == (400, "response_format")


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("streamed", [False, True])
def test_a_call_of_a_tool(formed, streamed):
    call = '{"name": "add", "arguments": {"a": 1}}'
    body = {"messages": CHAT, "tools": [TOOL], "guided_choice": [call], "max_tokens": 80, "stream": streamed}
    status, _, answer = formed.ask("POST", "/v1/chat/completions", body)
    assert status == 200, answer
    if streamed:
        choices = [chunk["choices"][0] for chunk in events_of(answer)[:-1]]
        calls = [c for choice in choices for c in choice["delta"].get("tool_calls", [])]
        assert "".join(choice["delta"].get("content") or "" for choice in choices) == ""
    else:
        choices = json.loads(answer)["choices"]
        calls = choices[0]["message"]["tool_calls"]
        assert choices[0]["message"]["content"] is None
    assert calls[0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert choices[-1]["finish_reason"] == "tool_calls"


CHOOSABLE = [
    {"type": "function", "function": {"name": "add", "parameters": {
        "type": "object", "required": ["a", "why"], "additionalProperties": False,
        "properties": {"a": {"$ref": "#/$defs/digit"}, "why": {"enum": ["}", 'say "{"', ""]}},
        "$defs": {"digit": {"enum": [1, 2]}},
    }}},
    {"type": "function", "function": {"name": "now", "parameters": {
        "type": "object", "properties": {"zone": {"type": "boolean"}}, "required": ["zone"],
    }}},
]  # fmt: skip


def named(name):
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize("choice", ["required", named("add"), named("now")], ids=["required", "add", "now"])
def test_an_answer_that_has_to_call_a_tool(formed, choice):
    """Random weights, held to a call: by the official client, whole and streamed, several at once."""
    names = ["add", "now"] if choice == "required" else [choice["function"]["name"]]
    settings: Any = dict(model="groundup", messages=CHAT, tools=CHOOSABLE, tool_choice=choice, n=4, seed=1)
    with openai.OpenAI(base_url=f"{formed.url}/v1", api_key="none", max_retries=0) as client:
        whole = client.chat.completions.create(max_tokens=400, **settings).choices
        chunks = list(client.chat.completions.create(max_tokens=400, stream=True, **settings))
    streamed = [{"name": "", "arguments": "", "id": "", "content": "", "finish": None, "deltas": 0} for _ in whole]
    for chunk in chunks:
        (part,) = chunk.choices
        into = streamed[part.index]
        into["content"] += part.delta.content or ""
        into["finish"] = part.finish_reason or into["finish"]
        for call in part.delta.tool_calls or []:
            assert call.index == 0
            into["deltas"] += 1
            into["id"] += call.id or ""
            into["name"] += call.function.name or ""
            into["arguments"] += call.function.arguments or ""
    for choice_made, parts in zip(whole, streamed, strict=True):
        (call,) = choice_made.message.tool_calls
        assert (choice_made.finish_reason, choice_made.message.content) == ("tool_calls", None)
        assert call.id.startswith("call_") and call.function.name in names
        said = json.loads(call.function.arguments)
        if call.function.name == "add":
            assert said["a"] in (1, 2) and said["why"] in ("}", 'say "{"', "") and len(said) == 2
        else:
            assert set(said) == {"zone"} and isinstance(said["zone"], bool)
        assert (parts["name"], parts["arguments"]) == (call.function.name, call.function.arguments)
        assert (parts["content"], parts["finish"]) == ("", "tool_calls")
        assert parts["id"].startswith("call_") and parts["deltas"] > 2


def test_a_call_that_is_cut_says_so(formed):
    body = {"messages": CHAT, "tools": CHOOSABLE, "tool_choice": "required", "max_tokens": 22, "temperature": 0}
    status, answer = formed.post("/v1/chat/completions", body)
    assert (status, answer["choices"][0]["finish_reason"]) == (200, "length")
    assert answer["choices"][0]["message"]["content"] in (None, "")


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"tools": []}, "tool_choice", "no tools"),
        ({"tool_choice": named("ad")}, "tool_choice", "'ad' is none of the tools"),
        ({"response_format": {"type": "json_object"}}, "tool_choice", "exclude each other"),
        ({"tool_choice": "sometimes"}, "tool_choice", ""),
        ({"tool_choice": {"type": "function"}}, "tool_choice", ""),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]}, "tools", "obj"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}]}, "tool_choice", "not"),
    ],
)
def test_choices_of_tools_that_cannot_be(formed, change, param, words):
    body = {"messages": CHAT, "tools": CHOOSABLE, "tool_choice": "required", "max_tokens": 2}
    status, answer = formed.post("/v1/chat/completions", body | change)
    assert status == 400 and answer["error"]["param"].partition(".")[0] == param, answer
    assert words in answer["error"]["message"]


def test_a_conversation_with_calls_and_results(formed):
    turns = [
        *CHAT,
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": "2"},
    ]  # fmt: skip
    assert formed.post("/v1/chat/completions", {"messages": turns, "tools": [TOOL], "max_tokens": 2})[0] == 200
    turns[1]["tool_calls"][0]["function"]["arguments"] = "{"
    status, answer = formed.post("/v1/chat/completions", {"messages": turns, "tools": [TOOL]})
    assert (status, answer["error"]["param"]) == (400, "messages[1].tool_calls")


@pytest.mark.parametrize(
    ("pieces", "shown", "rest", "calls"),
    [
        (["Hello", " you"], ["Hello", " you"], "", 0),
        (["<tool_", "call>", '{"name": "add", "arguments": {}}</tool_call>'], ["", "", ""], "", 1),
        (['<tool_call>{"name": "add"}</tool_call>\n<tool_call>{"name": "add"}</tool_call>'], [""], "", 2),
        (['{"name": "other", "arguments": {}}'], [""], '{"name": "other", "arguments": {}}', 0),
        (["{", "broken"], ["", ""], "{broken", 0),
        (["  ", "<to", "wer>"], ["", "", "  <tower>"], "", 0),
    ],
)
def test_what_is_a_call(pieces, shown, rest, calls):
    reader = CallReader({"add"})
    assert [reader.push(piece) for piece in pieces] == shown
    text, found = reader.finish()
    assert (text, len(found)) == (rest, calls)
    assert CallReader(()).push("{") == "{"
