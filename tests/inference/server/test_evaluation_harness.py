"""What lm-evaluation-harness's `local-completions` sends, and how it reads the answer (lm_eval 0.4.13,
models/openai_completions.py): log-likelihoods of given continuations, and texts until a stop."""

from operator import itemgetter

import pytest
import torch

PAIRS = [("the cat in", " the hat"), ("a bat", " sat on the mat"), ("x", "y")]


def parse_logprobs(answer, context_lengths):
    """As the harness does: without the prompt's part, and without the one token that was generated."""
    found = []
    for choice, length in zip(sorted(answer["choices"], key=itemgetter("index")), context_lengths, strict=True):
        logprobs = choice["logprobs"]["token_logprobs"][length:-1]
        tops = choice["logprobs"]["top_logprobs"][length:-1]
        greedy = all(logprob == max(top.values()) for logprob, top in zip(logprobs, tops, strict=True))
        found.append((sum(logprobs), greedy))
    return found


@torch.no_grad()
def by_hand(engine, context, continuation):
    ids = torch.tensor([context + continuation])
    logp = engine.model(ids)[0].log_softmax(-1)
    rows = range(len(context) - 1, ids.shape[1] - 1)
    values = [logp[row, ids[0, row + 1]].item() for row in rows]
    return sum(values), all(logp[row].argmax() == ids[0, row + 1] for row in rows)


@pytest.mark.parametrize("most", [1, 0])
def test_likelihoods_of_ids(server, engine, most):
    encoded = [(engine.tokenizer.encode(a), engine.tokenizer.encode(b)) for a, b in PAIRS]
    greedy = engine.generate(encoded[0][0], max_tokens=3, temperature=0).tokens
    encoded.append((encoded[0][0], greedy))
    body = {"model": "tiny", "prompt": [a + b for a, b in encoded], "temperature": 0, "max_tokens": most,
            "logprobs": 1, "seed": 1234, "echo": True}  # fmt: skip
    status, answer = server.post("/v1/completions", body)
    assert status == 200
    if most == 0:  # nothing generated: the harness is not used so, but others are
        for choice in answer["choices"]:
            for values in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                choice["logprobs"][values].append(None)
    ours = parse_logprobs(answer, [len(a) for a, _ in encoded])
    for (logprob, is_greedy), (a, b) in zip(ours, encoded, strict=True):
        expected, expected_greedy = by_hand(engine, a, b)
        assert logprob == pytest.approx(expected, abs=1e-4)
        assert is_greedy == expected_greedy
    assert ours[-1][1]
    first = answer["choices"][0]
    assert first["text"].startswith("the cat in the hat")
    assert first["logprobs"]["token_logprobs"][0] is None
    assert first["logprobs"]["text_offset"][0] == 0


def test_a_long_prompt_is_scored_in_chunks(server, engine):
    ids = (engine.tokenizer.encode("the cat in the hat and the bat sat on the mat ") * 20)[:400]
    status, answer = server.post(
        "/v1/completions", {"prompt": ids, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    )
    assert status == 200
    assert parse_logprobs(answer, [1])[0][0] == pytest.approx(by_hand(engine, ids[:1], ids[1:])[0], abs=1e-3)


def test_texts_until_a_stop(server, engine):
    prompts = [engine.tokenizer.encode(text) for text, _ in PAIRS]
    body = {"prompt": prompts, "model": "tiny", "max_tokens": 16, "temperature": 0, "stop": ["\n\n", "e"], "seed": 1234}
    status, answer = server.post("/v1/completions", body)
    assert status == 200
    expected = [engine.generate(ids, max_tokens=16, temperature=0, stop=["\n\n", "e"]).text for ids in prompts]
    assert [choice["text"] for choice in answer["choices"]] == expected


def test_a_prompt_without_room_for_a_token(server, engine):
    full = [99] * engine.context_length
    body = {"prompt": full, "max_tokens": 1, "logprobs": 1, "echo": True}
    status, answer = server.post("/v1/completions", body)
    assert status == 200
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == len(full)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert server.post("/v1/completions", body | {"prompt": [*full, 99]})[0] == 400
