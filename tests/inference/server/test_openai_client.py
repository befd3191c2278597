"""The official `openai` Python client against a real server."""

import math

import openai
import pytest

from groundup.inference import SamplingParams

CHAT = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(client):
    assert [model.id for model in client.models.list().data] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "groundup"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("../../etc/passwd")


def test_completion_is_what_the_engine_says(client, engine):
    done = client.completions.create(model="tiny", prompt="the cat", max_tokens=9, temperature=0)
    ours = engine.generate("the cat", SamplingParams(max_tokens=9, temperature=0))
    assert done.choices[0].text == ours.text
    assert done.choices[0].finish_reason == {"end": "stop", "length": "length"}[ours.finish_reason]
    assert done.usage.prompt_tokens == ours.prompt_tokens
    assert done.usage.completion_tokens == len(ours.tokens)
    assert done.usage.total_tokens == ours.prompt_tokens + len(ours.tokens)


def test_prompts_as_ids_and_in_lists(client, engine):
    ids = engine.tokenizer.encode("the cat in")
    settings = dict(model="tiny", max_tokens=5, temperature=0)
    alone = client.completions.create(prompt="the cat in", **settings).choices[0].text
    assert client.completions.create(prompt=ids, **settings).choices[0].text == alone
    several = client.completions.create(prompt=[ids, engine.tokenizer.encode("a bat")], **settings)
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.choices[0].text == alone
    texts = client.completions.create(prompt=["the cat in", "a bat"], **settings)
    assert [c.text for c in texts.choices] == [c.text for c in several.choices]


def test_chat_is_what_the_engine_says(client, engine):
    done = client.chat.completions.create(model="tiny", messages=CHAT, max_completion_tokens=9, temperature=0)
    ours = engine.chat(CHAT, SamplingParams(max_tokens=9, temperature=0))
    assert (done.choices[0].message.content, done.choices[0].message.role) == (ours.text, "assistant")
    assert done.usage.completion_tokens == len(ours.tokens)


def test_streams_join_to_the_whole(client):
    settings = dict(model="tiny", max_tokens=20, temperature=0.9, seed=3)
    whole = client.completions.create(prompt="the", **settings).choices[0].text
    chunks = list(client.completions.create(prompt="the", stream=True, **settings))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole
    whole = client.chat.completions.create(messages=CHAT, **settings).choices[0].message.content
    chunks = list(
        client.chat.completions.create(messages=CHAT, stream=True, stream_options={"include_usage": True}, **settings)
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1


def test_n_answers_of_consecutive_seeds(client):
    settings = dict(model="tiny", messages=CHAT, max_tokens=12, temperature=1.0)
    three = client.chat.completions.create(n=3, seed=5, **settings)
    each = [client.chat.completions.create(seed=5 + i, **settings).choices[0].message.content for i in range(3)]
    assert [choice.message.content for choice in three.choices] == each
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    pieces = ["", "", ""]
    for chunk in client.chat.completions.create(n=3, seed=5, stream=True, **settings):
        pieces[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert pieces == each


def test_chat_logprobs(client, engine):
    settings = dict(model="tiny", messages=CHAT, max_tokens=6, temperature=0, logprobs=True)
    content = client.chat.completions.create(top_logprobs=3, **settings).choices[0].logprobs.content
    ours = engine.chat(CHAT, SamplingParams(max_tokens=6, temperature=0, logprobs=3))
    assert [entry.logprob for entry in content] == pytest.approx([e.logprob for e in ours.logprobs], abs=1e-6)
    for entry, token in zip(content, ours.tokens, strict=True):
        assert bytes(entry.bytes) == engine.tokenizer.vocab[token]
        assert [top.logprob for top in entry.top_logprobs] == sorted(t.logprob for t in entry.top_logprobs)[::-1]
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == entry.logprob
    streamed = [
        entry
        for chunk in client.chat.completions.create(top_logprobs=3, stream=True, **settings)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in content]
    bare = client.chat.completions.create(**settings).choices[0].logprobs.content
    assert [entry.top_logprobs for entry in bare] == [[]] * len(content)


def test_completion_logprobs(client, engine):
    done = client.completions.create(model="tiny", prompt="the", max_tokens=6, temperature=1.0, seed=1, logprobs=2)
    logprobs = done.choices[0].logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 6
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert top[token] == logprob
        assert 2 <= len(top) <= 3
        assert sum(map(math.exp, top.values())) <= 1 + 1e-6


def test_stop_texts(client):
    whole = client.completions.create(model="tiny", prompt="the", max_tokens=30, temperature=0).choices[0].text
    stop = whole[7:9]
    cut = client.completions.create(model="tiny", prompt="the", max_tokens=30, temperature=0, stop=[stop, "zzzz"])
    assert cut.choices[0].text == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_logit_bias_and_penalties(client, engine):
    token = engine.tokenizer.encode("t")[0]
    settings = dict(model="tiny", prompt="a", max_tokens=5, temperature=0)
    forced = client.completions.create(logit_bias={str(token): 100}, **settings)
    assert forced.choices[0].text == "t" * 5
    penalised = client.completions.create(
        logit_bias={str(token): 30}, frequency_penalty=2.0, presence_penalty=2.0, **settings
    )
    assert penalised.choices[0].text.startswith("t")


@pytest.mark.parametrize(
    ("change", "error", "param"),
    [
        ({"temperature": -1.0}, openai.BadRequestError, "temperature"),
        ({"n": 0}, openai.BadRequestError, "n"),
        ({"model": "gpt-9"}, openai.NotFoundError, "model"),
        ({"stop": [""]}, openai.BadRequestError, "stop"),
        ({"extra_body": {"chat_template": "{{ x }}"}}, openai.BadRequestError, "chat_template"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, openai.BadRequestError, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x " * 900}]}, openai.BadRequestError, "messages"),
        ({"top_logprobs": 2}, openai.BadRequestError, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, openai.BadRequestError, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, openai.BadRequestError, "logit_bias"),
    ],
)
def test_errors(client, change, error, param):
    with pytest.raises(error) as caught:
        client.chat.completions.create(**({"model": "tiny", "messages": CHAT, "max_tokens": 2} | change))
    assert caught.value.param == param
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_keys(locked):
    from tests.inference.server.conftest import KEY

    with openai.OpenAI(base_url=f"{locked.url}/v1", api_key=KEY, max_retries=0) as client:
        assert client.models.list().data[0].id == "tiny"
        assert client.completions.create(model="tiny", prompt="a", max_tokens=1).choices[0].text is not None
    with (
        openai.OpenAI(base_url=f"{locked.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()
