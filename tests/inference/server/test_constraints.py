"""Answers that follow a form, through the server: JSON, a schema, a choice, an expression; and tools."""

import functools
import json

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
    with running_server(new_engine(), Settings(), compile_constraint=compile_ours) as server:
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
