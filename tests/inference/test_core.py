import logging
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from groundup.inference import Engine, SamplingParams
from groundup.inference.runner import TorchRunner
from tests.inference.small import (
    CONFIGS,
    RECURRENT,
    VOCAB,
    answers,
    crowd,
    engine,
    model,
    new_model,
    tokenizer,
    training_logprobs,
)

GREEDY = SamplingParams(temperature=0, max_tokens=12)

SETTINGS = {
    "cut prompts, known beginnings": {"step_tokens": 5, "batch_size": 3},
    "preempted": {"prefix_cache": False, "cache_tokens": 64, "page_size": 4},
}
FAST = ("gqa", "sink_tokens", "mamba2")
SOME = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]


def drain(engine):
    """Every output of all steps until nothing is left to do."""
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return outputs


@pytest.mark.parametrize("name", SOME)
def test_an_answer_is_the_same_alone_and_in_every_crowd(name):
    """Greedy and sampled tokens: by itself, beside others, with and without known beginnings, cut, preempted."""
    requests = crowd(4)
    alone: list[Any] = [engine(name).generate(*request) for request in requests]
    for setting, options in SETTINGS.items():
        one = engine(name, **options)
        together = answers(one, requests)
        assert [c.tokens for c in together] == [c.tokens for c in alone], setting
        assert one.stats().pages_used == 0
        # Elsewhere answers may end before the pool is full, or give back what lies behind their windows.
        if setting == "preempted" and name in FAST and one.core.reach is None:
            assert one.stats().preemptions > 0
    prompt, done = requests[0][0], alone[0]
    expected = training_logprobs(name, [*prompt, *done.tokens])[len(prompt) - 1 : -1]
    for row, token, entry in zip(expected, done.tokens, done.logprobs, strict=True):
        assert entry.logprob == pytest.approx(row[token].item(), abs=1e-5)


@pytest.mark.parametrize("name", SOME)
def test_batch_invariant_answers_are_equal_bit_for_bit(name):
    """Log-probabilities compared with ==, those of the two likeliest tokens included."""
    requests = crowd(4, seed=1)
    alone = [engine(name, batch_invariant=True).generate(*request) for request in requests]
    for setting, options in SETTINGS.items():
        options = options | {"page_size": 16}
        one = engine(name, batch_invariant=True, **options)
        assert answers(one, requests) == alone, setting
        assert setting != "preempted" or name not in FAST or one.stats().preemptions > 0
    one = engine(name, batch_invariant=True)
    assert answers(one, requests) == alone
    if name not in RECURRENT:
        again = answers(one, requests)  # with the beginnings of all of them known
        assert again == alone and one.stats().cached_prompt_tokens > 0
    prompt, done = requests[0][0], alone[0]
    expected = training_logprobs(name, [*prompt, *done.tokens])[len(prompt) - 1 : -1]
    got = torch.tensor([entry.logprob for entry in done.logprobs or ()])
    torch.testing.assert_close(got, expected[torch.arange(len(got)), done.tokens], rtol=0, atol=1e-5)


def test_a_prefix_is_computed_once_and_answers_differ_by_salt():
    one, prompt = engine(), list(range(40))
    first = one.generate(prompt, GREEDY)
    assert one.stats().cached_prompt_tokens == 0
    assert one.generate(prompt, GREEDY) == first and one.stats().cached_prompt_tokens == 32
    one.submit(prompt, GREEDY, salt="ada")
    drain(one)
    assert one.stats().cached_prompt_tokens == 32


def test_samples_share_their_prompt_and_have_seeds_of_their_own():
    one, prompt = engine(), list(range(40))
    several = one.samples(prompt, 3, max_tokens=9, seed=5)
    assert several == [engine().generate(prompt, max_tokens=9, seed=5 + i) for i in range(3)]
    assert one.stats().cached_prompt_tokens == 2 * 32 and one.stats().prompt_tokens == 120
    assert len({tuple(c.tokens) for c in one.samples(prompt, 3, max_tokens=9)}) == 3
    with pytest.raises(ValueError, match="n=0; expected at least 1"):
        one.samples(prompt, 0)


def test_weights_that_changed_leave_no_beginning_known():
    one, prompt = Engine(new_model("gqa"), tokenizer()), list(range(40))
    before = one.generate(prompt, GREEDY)
    weight = one.model.get_parameter("blocks.0.mixer.wv.weight")
    kept = weight.detach().clone()
    with torch.no_grad():
        weight += 0.5
    assert one.generate(prompt, GREEDY) == Engine(one.model, tokenizer()).generate(prompt, GREEDY) != before
    weight.data.copy_(kept)
    for parameter in one.model.parameters():
        parameter.data.mul_(1.5)  # behind the back of the version counter, as a kernel may
    assert one.generate(prompt, GREEDY) == Engine(one.model, tokenizer()).generate(prompt, GREEDY) != before
    assert one.stats().cached_prompt_tokens == 0
    one.core.forget()
    one.generate(prompt, GREEDY)
    assert one.stats().cached_prompt_tokens == 0


def test_outputs_add_up_to_the_completion():
    one = engine(batch_size=2)
    requests = [one.submit(p, replace(s, max_tokens=s.max_tokens + 1)) for p, s in crowd(5)]
    assert one.has_work and one.stats().waiting == 5
    outputs = drain(one)
    assert one.step() == []
    for request in requests:
        mine = [o for o in outputs if o.request is request]
        done = request.completion()
        assert "".join(o.text for o in mine) == done.text
        assert [t for o in mine for t in o.tokens] == done.tokens
        assert [e for o in mine for e in o.logprobs] == done.logprobs
        assert [o.finish_reason for o in mine] == [None] * (len(mine) - 1) + [done.finish_reason]
    stats = one.stats()
    assert (stats.waiting, stats.running, stats.requests_finished, stats.requests_failed) == (0, 0, 5, 0)
    assert stats.generated_tokens == sum(len(r.tokens) for r in requests)
    assert stats.prompt_tokens == sum(len(r.prompt) for r in requests)


def test_no_tokens_to_make_and_endless_ones():
    one = engine()
    none, endless = one.submit([5], max_tokens_of(0)), one.submit([5], max_tokens_of(2**63))
    assert none.finish_reason == "length"
    (output,) = one.step()[:1]
    assert (output.request, output.tokens, output.finish_reason) == (none, [], "length")
    drain(one)
    assert len(endless.tokens) == 63 or endless.finish_reason == "end"


def max_tokens_of(count):
    return replace(GREEDY, max_tokens=count)


def test_abort_frees_at_once_and_is_idempotent():
    one = engine(batch_size=1)
    running, waiting = one.submit([5] * 20, GREEDY), one.submit([6], GREEDY)
    one.step()
    assert one.stats().pages_used == 2
    for request in (running, waiting, running):
        one.abort(request)
    assert (running.finish_reason, waiting.finish_reason) == ("abort", "abort")
    stats = one.stats()
    assert (stats.pages_used, stats.requests_aborted, one.has_work) == (0, 2, False)
    assert running.completion().finish_reason == "abort"
    done = one.submit([7], max_tokens_of(1))
    drain(one)
    one.abort(done)
    assert done.finish_reason == "length" and one.stats().requests_aborted == 2


def test_generating_and_stepping_may_be_mixed():
    one, reference = engine(), engine()
    request, streams = one.submit([9, 8], GREEDY), [one.stream([i], GREEDY) for i in (3, 4)]
    first = next(streams[0])
    assert one.generate([5, 6], GREEDY) == reference.generate([5, 6], GREEDY)
    texts = [first + "".join(streams[0]), "".join(streams[1])]
    assert texts == [reference.generate([i], GREEDY).text for i in (3, 4)]
    outputs = drain(one)
    assert [t for o in outputs for t in o.tokens] == request.tokens == reference.generate([9, 8], GREEDY).tokens


def test_a_stream_that_is_left_frees_its_pages():
    one = engine()
    stream = one.stream([5], GREEDY)
    next(stream)
    stream.close()
    assert one.stats().pages_used == 0 and not one.has_work


# -- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.fixture
def poison():
    """A function that makes the model raise at a token which is in none of these prompts and answers."""
    handles = []

    def spread(*harmless):
        bad = next(token for token in range(VOCAB) if all(token not in ids for ids in harmless))

        def refuse(module, args):
            if (args[0] == bad).any():
                raise RuntimeError("bad luck")

        handles.append(model().embed.register_forward_pre_hook(refuse))
        return bad

    yield spread
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("options", [{}, {"step_tokens": 6, "batch_size": 2}])
def test_an_exception_ends_its_request_and_leaves_the_others_bitwise_alone(poison, options):
    requests = crowd(4)
    expected: list[Any] = [engine(batch_invariant=True).generate(*request) for request in requests]
    token = poison(*[prompt for prompt, _ in requests], *[done.tokens for done in expected])
    one = engine(batch_invariant=True, **options)
    bad = one.submit([*requests[0][0], token, 4], GREEDY)
    good = [one.submit(*request) for request in requests]
    also_bad = one.submit([token], GREEDY)
    outputs = drain(one)
    assert [request.completion() for request in good] == expected
    for request in (bad, also_bad):
        (last,) = [o for o in outputs if o.request is request]
        assert (last.finish_reason, last.error, last.tokens) == ("error", "bad luck", [])
    stats = one.stats()
    assert (stats.requests_failed, stats.requests_finished, stats.pages_used) == (2, len(good), 0)


def test_generate_raises_what_the_model_raised(poison):
    expected: Any = [engine().generate([i], GREEDY) for i in (5, 6)]
    token = poison([5, 6], *[done.tokens for done in expected])
    one = engine()
    with pytest.raises(RuntimeError, match="bad luck"):
        one.generate([[5], [token], [6]], GREEDY)
    assert not one.has_work and one.stats().pages_used == 0
    assert one.generate([[5], [6]], GREEDY) == expected


@pytest.mark.parametrize("invariant", [True, False])
def test_a_nan_stays_with_its_request(invariant):
    """Neither a neighbour in the batch nor the next holder of the page sees it, though 0 times NaN is NaN."""
    one = engine(batch_invariant=invariant, cache_tokens=64)
    expected = engine(batch_invariant=invariant).generate([7] * 30, GREEDY)
    with torch.no_grad():
        kept = one.model.embed.weight[13].clone()
        one.model.embed.weight[13] = torch.nan
    bad, good = one.submit([13, 5], GREEDY), one.submit([7] * 30, GREEDY)
    drain(one)
    assert bad.finish_reason == "error" and "NaN" in (bad.error or "")
    assert good.completion() == expected
    assert all(one.generate([[7] * 30] * 2, GREEDY)[i] == expected for i in range(2))
    with torch.no_grad():
        one.model.embed.weight[13] = kept


class Only:
    """A constraint that allows these tokens, and raises after so many of them."""

    def __init__(self, allowed, most=99):
        self.allowed, self.most, self.seen = allowed, most, []
        self.finished = False

    def mask(self):
        return torch.isin(torch.arange(VOCAB), torch.tensor(self.allowed))

    def push(self, token):
        self.seen.append(token)
        if len(self.seen) > self.most:
            raise ValueError("no token can go on")


def test_a_constraint_is_obeyed_and_its_failure_is_its_requests():
    one = engine()
    held, free = one.submit([5], GREEDY, constraint=Only([40, 41])), one.submit([6], GREEDY)
    failing = one.submit([7], GREEDY, constraint=Only([40, 41], most=2))
    drain(one)
    assert set(held.tokens) <= {40, 41} and held.constraint.seen == held.tokens and len(held.tokens) == 12
    assert free.completion() == engine().generate([6], GREEDY)
    assert (failing.finish_reason, failing.error) == ("error", "no token can go on")


@pytest.mark.parametrize("name", ["mamba2", "gqa"])
@pytest.mark.parametrize("invariant", [False, True])
def test_a_pass_that_raises_is_not_run_twice_for_others(name, invariant):
    """A recurrent state must not go on over the same token again, beside prompts at which the model raises."""
    expected: Any = engine(name, batch_invariant=invariant).generate([5, 6, 7], GREEDY)
    token = next(token for token in range(1, VOCAB) if token not in (5, 6, 7, *expected.tokens))

    def refuse(module, args):
        if (args[0] == token).any():
            raise RuntimeError("bad luck")

    handle = model(name).embed.register_forward_pre_hook(refuse)
    one = engine(name, batch_invariant=invariant)
    good, bad = one.submit([5, 6, 7], GREEDY), []
    for _ in range(5):
        bad.append(one.submit([token] * 9, GREEDY))
        one.step()
    drain(one)
    handle.remove()
    assert good.completion() == expected and [request.finish_reason for request in bad] == ["error"] * 5


def test_every_request_is_counted_once_under_its_reason():
    one = engine(batch_size=2)
    plain: Any = one.generate([5], GREEDY)
    prompts = [[5], [6, 7], [8]]
    kinds = [
        GREEDY, max_tokens_of(0), max_tokens_of(1), replace(GREEDY, stop=plain.text[:1]),
        replace(GREEDY, logit_bias={tokenizer().end_of_text: 100}),
    ]  # fmt: skip
    requests = [one.submit(prompt, kind) for prompt in prompts for kind in kinds]
    requests.append(one.submit([5], GREEDY, constraint=Only([40], most=2)))
    left = [one.submit([9], GREEDY) for _ in range(2)]
    with pytest.raises(ValueError, match="do not fit"):
        one.submit([1] * 65, GREEDY)
    one.step()
    for request in left:
        one.abort(request)
        one.abort(request)
    outputs = drain(one)
    one.generate([[5], [6]], max_tokens_of(0))
    stats, ended = one.stats(), Counter(request.finish_reason for request in requests + left)
    assert {o.request.id for o in outputs} <= {r.id for r in requests}
    assert stats.requests_ended == ended + Counter(length=2) + Counter([plain.finish_reason])
    assert set(ended) == {"length", "stop", "end", "abort", "error"}
    assert sum(stats.requests_ended.values()) == stats.requests_submitted == len(requests) + len(left) + 3
    counted = stats.requests_finished, stats.requests_failed, stats.requests_aborted
    assert counted == (stats.requests_submitted - 3, 1, 2)


@pytest.mark.parametrize("drafted", [False, True])
def test_the_text_before_a_failure_reaches_its_reader(drafted):
    """Also where tokens of one draft stand, and where a stop text might have begun."""
    allowed = sorted(token for token, data in tokenizer().vocab.items() if data in (b"a", b"b", b"c"))
    whole = engine().submit([7], GREEDY, constraint=Only(allowed))
    made = engine()
    request = made.submit([7], GREEDY, constraint=Only(allowed))
    drain(made)
    text = request.completion().text
    assert len(text) == 12 and whole.finish_reason is None
    oracle = Oracle({(7,): request.tokens}, wrong=99)
    one = engine(proposer=oracle) if drafted else engine()
    failing = one.submit([7], replace(GREEDY, stop=text[3:7] + "!"), constraint=Only(allowed, most=7))
    outputs = drain(one)
    assert failing.finish_reason == "error" and failing.tokens == request.tokens[:7]
    assert "".join(o.text for o in outputs) == failing.completion().text == text[:7]
    assert [t for o in outputs for t in o.tokens] == failing.tokens
    assert len(outputs) == (3 if drafted else 8) and outputs[-1].error == "no token can go on"


@pytest.mark.usefixtures("unchecked")
def test_refusals_at_admission():
    one = engine()
    with pytest.raises(ValueError, match="salt=3; expected a text"):
        one.submit([5], GREEDY, salt=3)  # pyright: ignore[reportArgumentType]
    for prompt, wrong in [
        ([VOCAB], f"id {VOCAB} is not"),
        ([1] * 65, "65 tokens do not fit the model's context of 64"),
    ]:
        with pytest.raises(ValueError, match=wrong):
            one.submit(prompt, GREEDY)
    with pytest.raises(ValueError, match="logit_bias: id 262 is not in the vocabulary"):
        one.submit([1], replace(GREEDY, logit_bias={262: 1.0}))
    for options, wrong in [
        ({"batch_size": 0}, "batch_size=0"), ({"page_size": 0}, "page_size=0"), ({"cache_tokens": 3}, "cache_tokens=3"),
        ({"step_tokens": 0}, "step_tokens=0"), ({"draft_tokens": 0}, "draft_tokens=0"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=wrong):
            engine(**options)


# -- drafts and decoders -----------------------------------------------------------------------------------------------


class Oracle:
    """Proposes what the model said before, and something else at every third place."""

    def __init__(self, answers, wrong=3):
        self.answers, self.wrong, self.proposed = answers, wrong, 0

    def propose(self, request, count):
        done = len(request.tokens)
        guess = self.answers[tuple(request.prompt)][done : done + count]
        self.proposed += len(guess)
        return [(t + 1) % VOCAB if (done + i) % self.wrong == 2 else t for i, t in enumerate(guess)]


@pytest.mark.parametrize("name", ["gqa", "sink_tokens"])
def test_drafts_change_the_steps_and_not_the_answers(name):
    requests = crowd(3)
    alone: list[Any] = answers(engine(name), requests)
    oracle = Oracle({tuple(p): c.tokens for (p, _), c in zip(requests, alone, strict=True)})
    for options in ({}, {"cache_tokens": 64}, {"step_tokens": 5, "page_size": 2, "batch_invariant": True}):
        one = engine(name, proposer=oracle, **options)
        together = answers(one, requests)
        assert [c.tokens for c in together] == [c.tokens for c in alone]
        for a, b in zip(together, alone, strict=True):
            assert [x.logprob for x in a.logprobs] == pytest.approx([x.logprob for x in b.logprobs], abs=1e-5)
        assert one.stats().pages_used == 0
    assert oracle.proposed > 15
    long = replace(GREEDY, max_tokens=40)
    ids = engine(name).generate([5, 6], long).tokens
    guessed = engine(name, proposer=Oracle({(5, 6): ids}, wrong=99))
    assert guessed.generate([5, 6], long).tokens == ids
    assert guessed.stats().steps <= 2 + -(-len(ids) // 5)


def test_a_state_that_cannot_go_back_is_not_drafted_for(caplog):
    with caplog.at_level(logging.INFO):
        one = engine("mamba2", proposer=Oracle({}))
    assert "no speculation" in caplog.text
    assert one.generate([5], GREEDY) == engine("mamba2").generate([5], GREEDY)


def test_a_proposer_that_raises_ends_the_request_it_raised_for():
    class Broken:
        def propose(self, request, count):
            if request.prompt == [5]:
                raise KeyError("draft")
            return []

    one = engine(proposer=Broken())
    bad, good = one.submit([5], GREEDY), one.submit([6], GREEDY)
    outputs = drain(one)
    assert bad.finish_reason == "error" and good.completion() == engine().generate([6], GREEDY)
    assert [o.error for o in outputs if o.request is bad and o.finish_reason] == ["'draft'"]


class Watched(TorchRunner):
    """A decoder that notes what it is given."""

    def __init__(self, model, store, **promises):
        super().__init__(model, store)
        self.lengths = []
        self.__dict__.update(promises)

    def run(self, spans):
        self.lengths += [len(span.tokens) for span in spans]
        return super().run(spans)


@pytest.mark.parametrize(
    "promises, invariant, longest",
    [({}, False, 1), ({"takes_prompts": True}, False, 9), ({}, True, 0),
     ({"takes_prompts": True, "batch_invariant": True}, True, 9)],
)  # fmt: skip
def test_a_decoder_gets_what_it_takes(promises, invariant, longest):
    built, requests = [], crowd(3)
    one = engine(
        decoder=lambda *parts: built.append(Watched(*parts, **promises)) or built[-1],
        batch_invariant=invariant, step_tokens=9,
    )  # fmt: skip
    assert [c.tokens for c in answers(one, requests)] == [c.tokens for c in answers(engine(), requests)]
    assert max(built[0].lengths, default=0) == longest and len(built) == 1


def test_a_decoder_that_refuses_says_why_once(caplog):
    class Refusal:
        reason = "the layers are round"

    done = engine(decoder=lambda model, store: Refusal()).generate([[5], [6]], GREEDY)
    assert done == engine().generate([[5], [6]], GREEDY)
    assert caplog.text.count("the layers are round") == 1
