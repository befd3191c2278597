from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scipy import stats

from groundup import presets
from groundup.inference import Engine, SamplingParams
from groundup.inference.constraint import compile_constraint
from groundup.inference.sampling import distribution
from groundup.inference.speculative import DraftProposer, MultiTokenProposer, NgramProposer
from groundup.model import Transformer
from groundup.model.multi_token import MultiTokenConfig, draft
from groundup.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train_from_iterator(["the cat in the hat"], 260, special_tokens=["<|endoftext|>"])


def new_model(seed: int = 0, noise: float = 0.3, depth: int = 0) -> Transformer:
    torch.manual_seed(0)
    multi_token = MultiTokenConfig(depth) if depth else None
    config = presets.llama(vocab_size=260, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, context_length=96)
    model = Transformer(replace(config, multi_token=multi_token)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += noise * torch.randn(p.shape, generator=generator)
    return model


MODEL = new_model(depth=2)


@dataclass(eq=False)
class Asked:
    ids: list[int]


@dataclass
class Guesses:
    """Any tokens at all, some of them right by chance: what a proposer may be at its worst."""

    seed: int = 0

    def propose(self, request: Any, count: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed + len(request.ids))
        return torch.randint(250, (count,), generator=generator).tolist()


@dataclass
class Known:
    """Guesses from an answer that is known, wrong at every fifth place."""

    ids: list[int]

    def propose(self, request: Any, count: int) -> list[int]:
        start = len(request.ids)
        return [t if (start + i) % 5 else (t + 1) % 250 for i, t in enumerate(self.ids[start : start + count])]


def proposers():
    same = DraftProposer(Engine(MODEL, TOKENIZER), 260)
    near = DraftProposer(Engine(new_model(0, 0.305), TOKENIZER, cache_tokens=256), 260)
    return {
        "n-gram": NgramProposer(3, 1),
        "any": Guesses(),
        "draft of itself": same,
        "draft": near,
        "multi": MultiTokenProposer(MODEL),
    }


SETTINGS = [
    SamplingParams(temperature=0, max_tokens=40),
    SamplingParams(temperature=0.9, max_tokens=40, seed=3, top_k=4, logprobs=2),
    SamplingParams(temperature=1.3, max_tokens=30, seed=5, repetition_penalty=1.4, frequency_penalty=0.5),
    SamplingParams(temperature=0, max_tokens=25, stop="a", logit_bias={97: 2}),
]


@pytest.mark.parametrize("name", proposers())
def test_answers_are_those_without_speculation(name):
    prompts = [[5, 6, 7, 5, 6], TOKENIZER.encode("the cat in the hat in the cat"), [9], [40] * 50]
    plain: Any = Engine(MODEL, TOKENIZER, batch_size=3).generate(prompts, SETTINGS)
    engine = Engine(MODEL, TOKENIZER, batch_size=3, proposer=proposers()[name], draft_tokens=3)
    ours: Any = engine.generate(prompts, SETTINGS)
    for a, b in zip(ours, plain, strict=True):
        assert (a.tokens, a.text, a.finish_reason) == (b.tokens, b.text, b.finish_reason)
        for x, y in zip(a.logprobs or [], b.logprobs or [], strict=True):
            assert x.logprob == pytest.approx(y.logprob, abs=1e-5)
    assert engine.stats().drafted_tokens > 0 and engine.stats().pages_used == 0


def test_a_constraint_holds_under_speculation():
    def answer(proposer):
        engine = Engine(MODEL, TOKENIZER, proposer=proposer)
        constraint = compile_constraint("regex", "(ab|ba){4}c*", TOKENIZER, engine.end_ids)
        params = SamplingParams(seed=1, max_tokens=30, logit_bias={TOKENIZER.end_of_text: 3})
        request = engine.submit([5, 6], params, constraint=constraint)
        while request.finish_reason is None:
            engine.step()
        return request.tokens

    plain = answer(None)
    assert answer(Known([5, 6, *plain])) == answer(Guesses()) == plain


def test_tokens_follow_the_models_distribution():
    """Chi-square of 1,200 answers of three tokens against the product of the model's exact probabilities."""
    params = SamplingParams(top_k=2, temperature=1.5, max_tokens=3)
    prompt, count = [5, 6, 7, 8], 1_200

    def exact(answer=(), before=1.0):
        """The probability of every answer that begins so."""
        if len(answer) == 3:
            return {answer: before}
        with torch.no_grad():
            row = distribution(MODEL(torch.tensor([[*prompt, *answer]]))[0, -1:], [params])[0]
        following = [exact((*answer, token), before * float(row[token])) for token in row.nonzero().flatten().tolist()]
        return {answer: p for each in following for answer, p in each.items()}

    expected = exact()
    likely = max(expected, key=lambda answer: expected[answer])
    guesses = SimpleNamespace(propose=lambda request, n: list(likely[1 : 1 + n]))
    engine = Engine(MODEL, TOKENIZER, batch_size=64, proposer=guesses, draft_tokens=1)
    drawn = [tuple(c.tokens) for c in engine.samples(prompt, count, params, seed=100)]
    counts = [drawn.count(answer) for answer in expected]
    assert sum(counts) == count and engine.stats().accepted_tokens > 100
    total = sum(expected.values())
    assert stats.chisquare(counts, [p / total * count for p in expected.values()]).pvalue > 1e-4


@pytest.mark.parametrize("params", SETTINGS[:2])
def test_a_draft_model_that_agrees_is_always_right(params):
    """Also at temperatures above 0: it draws by the same random numbers."""
    engine = Engine(MODEL, TOKENIZER, proposer=DraftProposer(Engine(MODEL, TOKENIZER), 260), draft_tokens=4)
    done = engine.generate([5, 6, 7], params)
    assert engine.stats().acceptance_rate == 1
    assert engine.stats().steps == 1 + -(-(len(done.tokens) - 1) // 5)  # the prompt, then five tokens a pass


def test_right_guesses_save_passes_and_wrong_ones_are_counted():
    plain = Engine(MODEL, TOKENIZER)
    tokens = plain.generate([5, 6, 7], SETTINGS[0]).tokens
    assert plain.stats().steps == len(tokens) and plain.stats().acceptance_rate == 0
    engine = Engine(MODEL, TOKENIZER, proposer=Known([5, 6, 7, *tokens]), draft_tokens=4)
    assert engine.generate([5, 6, 7], SETTINGS[0]).tokens == tokens
    assert engine.stats().steps < len(tokens) / 2
    assert 0.5 < engine.stats().acceptance_rate < 1


def test_ngram_guesses_by_hand():
    request = Asked([1, 2, 3, 4, 1, 2, 9, 1, 2])
    assert NgramProposer(4, 2).propose(request, 3) == [9, 1, 2]  # the latest [1, 2]
    assert NgramProposer(4, 3).propose(request, 3) == []
    proposer = NgramProposer(3, 1)
    assert proposer.propose(request, 1) == [9]
    request.ids += [3]
    assert proposer.propose(request, 5) == [4, 1, 2, 9, 1]  # [1, 2, 3] wins over a later [3]
    request.ids += [7]
    assert proposer.propose(request, 5) == []
    assert NgramProposer(2, 1).propose(Asked([]), 4) == []


def test_ngram_guesses_equal_a_search_through_the_text():
    generator = torch.Generator().manual_seed(0)
    proposer, request = NgramProposer(3, 1), Asked([])
    for _ in range(300):
        request.ids.append(int(torch.randint(4, (), generator=generator)))
        ids, expected = request.ids, []
        for n in (1, 2, 3):
            ends = [e for e in range(n, len(ids)) if ids[e - n : e] == ids[len(ids) - n :]]
            expected = ids[ends[-1] : ends[-1] + 2] if ends else expected
        assert proposer.propose(request, 2) == expected


def test_the_draft_model_reads_each_token_once():
    drafting = Engine(MODEL, TOKENIZER, page_size=4)
    engine = Engine(MODEL, TOKENIZER, proposer=DraftProposer(drafting, 260), draft_tokens=2)
    engine.generate([5, 6, 7], SETTINGS[0])
    done = drafting.stats()
    assert done.prompt_tokens - done.cached_prompt_tokens < 8 * done.requests_finished
    assert done.pages_used == 0


def test_a_draft_model_with_less_context_gives_up():
    drafting = Engine(MODEL, TOKENIZER, cache_tokens=16)
    engine = Engine(MODEL, TOKENIZER, proposer=DraftProposer(drafting, 260))
    assert engine.generate([5] * 10, SETTINGS[0]) == Engine(MODEL, TOKENIZER).generate([5] * 10, SETTINGS[0])


class Compared(MultiTokenProposer):
    """Each proposal beside what the modules say when they read the whole text again, without caches. Proposed is the
    answer itself, wrong at every fifth place, as untrained modules are never right."""

    def __init__(self, answer: list[int]) -> None:
        super().__init__(MODEL)
        self.answer, self.places = Known(answer), []

    def observe(self, request, start, states):
        self.places += range(start, start + len(states))
        super().observe(request, start, states)

    def propose(self, request, count):
        guesses = super().propose(request, count)
        again = draft(self.model, torch.tensor([request.ids[:-1]]))[0].tolist()
        assert again[0] == request.ids[-1] and guesses == again[1 : 1 + count] and len(guesses) == min(count, 2)
        return self.answer.propose(request, count)


@pytest.mark.parametrize("count", [1, 5])
def test_cached_modules_guess_what_those_that_read_all_again_do(count):
    """At every place, as one to six tokens are added at a time; greedy, so that the text is the model's own."""
    for prompt in ([9], [40] * 21):
        tokens = Engine(MODEL, TOKENIZER).generate(prompt, temperature=0, max_tokens=20).tokens
        compared = Compared([*prompt, *tokens])
        engine = Engine(MODEL, TOKENIZER, proposer=compared, draft_tokens=count, step_tokens=8)
        assert engine.generate(prompt, temperature=0, max_tokens=20).tokens == tokens
        assert compared.places == list(range(len(prompt) + len(tokens) - 1))  # each once
        assert 0 < engine.stats().accepted_tokens < engine.stats().drafted_tokens


def test_modules_read_each_token_once_and_what_rested_on_guesses_again():
    proposer, read = MultiTokenProposer(MODEL), []
    hooks = [d.register_forward_pre_hook(lambda _, args: read.append(args[0].shape[1])) for d in proposer.depths]
    engine = Engine(MODEL, TOKENIZER, proposer=proposer, draft_tokens=2)
    tokens = engine.generate([5, 6, 7, 8, 9], temperature=0, max_tokens=16).tokens
    for hook in hooks:
        hook.remove()
    assert read[:2] == [5, 5] and max(read[2:]) <= 2 + 2
    assert sum(read[2:]) <= 2 * (len(tokens) + len(read) // 2)


def test_modules_guess_after_a_preemption_and_after_a_shared_beginning():
    """Guesses need not be those of modules that know all; answers stay what they are."""
    prompts = [[5] * 9 + [i] for i in range(3)]
    plain: Any = Engine(MODEL, TOKENIZER).generate(prompts, temperature=0, max_tokens=16)
    engine = Engine(MODEL, TOKENIZER, proposer=MultiTokenProposer(MODEL), cache_tokens=48, page_size=4)
    ours: Any = engine.generate(prompts, temperature=0, max_tokens=16)
    assert [c.tokens for c in ours] == [c.tokens for c in plain]
    stats = engine.stats()
    assert stats.preemptions > 0 and stats.cached_prompt_tokens > 0 and stats.drafted_tokens > 20


def test_a_proposer_of_states_leaves_compiled_steps_and_fixed_tiles_alone(caplog):
    built = []
    engine = Engine(MODEL, TOKENIZER, proposer=MultiTokenProposer(MODEL), decoder=lambda *a: built.append(a))
    engine.generate([5, 6, 7], SETTINGS[0])
    assert not built and engine.stats().drafted_tokens
    exact = Engine(MODEL, TOKENIZER, proposer=MultiTokenProposer(MODEL), batch_invariant=True)
    assert exact.core.drafting is None and MultiTokenProposer(MODEL).propose(Asked([1, 2]), 2) == []


class Beyond:
    """Proposes ids that are none, behind some that the model would draw."""

    def __init__(self, ids, wrong):
        self.ids, self.wrong = ids, wrong

    def propose(self, request, count):
        return [*self.ids[len(request.ids) :][: count - 1], self.wrong]


@pytest.mark.parametrize("wrong", [259, 260, 299, 300, 10**9, -1])
def test_ids_that_are_no_tokens_are_never_verified(wrong):
    """259 is the last token; up to 299 the model's vocabulary is padded."""
    config = replace(MODEL.config, vocab_size=300, multi_token=None)
    torch.manual_seed(0)
    padded = Transformer(config).eval()
    params = SamplingParams(temperature=0, max_tokens=12)
    plain: Any = Engine(padded, TOKENIZER).generate([5, 6], params)
    engine = Engine(padded, TOKENIZER, proposer=Beyond([5, 6, *plain.tokens], wrong))
    assert engine.generate([5, 6], params) == plain
    stats = engine.stats()
    if wrong == 259:
        assert stats.accepted_tokens < stats.drafted_tokens
    else:
        assert stats.accepted_tokens == stats.drafted_tokens > 5


def test_a_draft_model_is_not_asked_about_rows_that_only_pad_the_model():
    torch.manual_seed(0)
    padded = Transformer(replace(MODEL.config, vocab_size=300, multi_token=None)).eval()
    params = SamplingParams(temperature=0, max_tokens=8)
    drafting = Engine(MODEL, TOKENIZER)
    engine = Engine(padded, TOKENIZER, proposer=DraftProposer(drafting, 260))
    plain: Any = Engine(padded, TOKENIZER).generate([[5, 299], [5, 6]], params)
    assert engine.generate([[5, 299], [5, 6]], params) == plain
    assert engine.stats().drafted_tokens > 0 and drafting.stats().requests_failed == 0


def test_a_padded_draft_model_proposes_tokens_only():
    """Its padding would be the most likely: the head's rows there are those of what it draws, twice."""
    torch.manual_seed(0)
    padded = Transformer(replace(MODEL.config, vocab_size=300, multi_token=None, tie_embeddings=False)).eval()
    assert padded.head is not None
    with torch.no_grad():
        padded.head.weight[260:] = 100 * padded.head.weight[:40]
    drafting = Engine(padded, TOKENIZER)
    for seed in range(8):
        request = Engine(MODEL, TOKENIZER).submit([5, 6, seed], SamplingParams(temperature=1.0, seed=seed))
        guesses = DraftProposer(drafting, 260).propose(request, 4)
        assert len(guesses) in range(1, 5) and max(guesses) < 260


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="has 260 tokens, and that of the model 261"):
        DraftProposer(Engine(MODEL, TOKENIZER), 261)
    with pytest.raises(ValueError, match="no multi-token modules"):
        MultiTokenProposer(new_model())
    for shortest, longest in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match="1 <= shortest <= longest"):
            NgramProposer(longest, shortest)
