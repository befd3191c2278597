import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy import stats
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from groundup.inference.sampling import (
    ALLOWED,
    SamplingParams,
    distribution,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    new_generator,
    sample,
    token_logprobs,
)

NO_INPUT: Any = torch.zeros(3, 1).long()
HAND = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log()


def kept(logits):
    return logits.isfinite().flatten().tolist()


def test_each_filter_by_hand():
    assert kept(keep_top_k(HAND, 2)) == [False, True, True, False]
    assert kept(keep_top_p(HAND, 0.65)) == [False, True, True, False]  # 0.4 < 0.65 <= 0.4 + 0.3
    assert kept(keep_top_p(HAND, 0.75)) == [False, True, True, True]
    assert kept(keep_min_p(HAND, 0.45)) == [False, True, True, True]  # 0.18 is the floor
    assert kept(keep_min_p(HAND, 0.6)) == [False, True, True, False]


def test_order_top_p_sees_what_top_k_left():
    params = SamplingParams(top_k=2, top_p=0.5)  # 0.4 / 0.7 = 0.571 reaches 0.5 alone
    assert distribution(HAND, [params]).tolist() == [[0, 1, 0, 0]]


def test_temperature_by_hand():
    squared = torch.tensor([[0.01, 0.16, 0.09, 0.04]]) / 0.30
    torch.testing.assert_close(distribution(HAND, [SamplingParams(temperature=0.5)]), squared)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "setting",
    [
        dict(temperature=0.7),
        dict(top_k=5),
        dict(top_p=0.8),
        dict(min_p=0.1),
        dict(temperature=1.7, top_k=20, top_p=0.7, min_p=0.05),
    ],
)
def test_equals_transformers(setting, seed):
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(seed)) * 3
    params = SamplingParams(**setting)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    expected = warpers(NO_INPUT, logits).softmax(-1)
    torch.testing.assert_close(distribution(logits, [params] * 3), expected)


def test_rows_with_their_own_settings_equal_each_alone():
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(1)) * 2
    settings = [
        SamplingParams(),
        SamplingParams(temperature=0),
        SamplingParams(temperature=0.5, top_k=3),
        SamplingParams(top_p=0.6),
        SamplingParams(min_p=0.3, top_k=10**9),
    ]
    together = distribution(logits, settings)
    alone = torch.cat([distribution(row[None], [p]) for row, p in zip(logits, settings, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)
    torch.testing.assert_close(together.sum(-1), torch.ones(5))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.5),
        SamplingParams(top_k=4),
        SamplingParams(top_p=0.7),
        SamplingParams(min_p=0.2),
        SamplingParams(temperature=0.8, top_k=8, top_p=0.9, min_p=0.02),
    ],
)
def test_draws_follow_the_exact_distribution(params):
    """Chi-square over 20,000 draws: p > 1e-4, and never a token of probability zero."""
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(3)).double() * 1.5
    exact = torch.tensor(expected_distribution(logits[0].tolist(), params), dtype=torch.float64)
    generator = new_generator(11)
    uniforms = torch.rand(20_000, 1, generator=generator, dtype=torch.float64)
    tokens = draw(distribution(logits.float(), [params]).expand(20_000, -1), uniforms)
    counts = torch.bincount(tokens, minlength=12).double()
    assert counts[exact == 0].sum() == 0
    live = exact > 0
    assert stats.chisquare(counts[live], exact[live] * 20_000).pvalue > 1e-4


def expected_distribution(logits: list[float], params: SamplingParams) -> list[float]:
    """The definition in plain Python, one rule after the other."""
    weights = {i: math.exp(x / params.temperature) for i, x in enumerate(logits)}
    best = sorted(weights, key=lambda i: -weights[i])
    best = best[: params.top_k] if params.top_k else best
    if params.top_p:
        total, reached, kept = sum(weights[i] for i in best), 0.0, []
        for i in best:
            if reached < params.top_p:
                kept.append(i)
            reached += weights[i] / total
        best = kept
    if params.min_p:
        best = [i for i in best if weights[i] >= params.min_p * weights[best[0]]]
    total = sum(weights[i] for i in best)
    return [weights[i] / total if i in best else 0.0 for i in range(len(logits))]


def test_sample_itself_follows_the_distribution():
    logits = torch.tensor([[0.1, 0.2, 0.7]]).log().expand(500, -1)
    generators = [new_generator(i) for i in range(500)]
    draws = [sample(logits, [SamplingParams()] * 500, generators) for _ in range(8)]
    counts = torch.bincount(torch.tensor(draws).flatten(), minlength=3)
    assert stats.chisquare(counts.numpy(), [400, 800, 2800]).pvalue > 1e-4


def test_greedy_is_argmax_and_draws_nothing():
    logits = torch.randn(64, 100)
    greedy = [SamplingParams(temperature=0)] * 64
    assert sample(logits, greedy, []) == logits.argmax(-1).tolist()
    mixed = [*greedy[:63], SamplingParams()]
    generators = [new_generator(0) for _ in range(64)]
    assert sample(logits, mixed, generators)[:63] == logits[:63].argmax(-1).tolist()


def test_ends_of_the_uniform_interval():
    probabilities = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).expand(4, -1)
    uniforms = torch.tensor([[0.0], [0.25 - 1e-12], [0.25], [1 - 2**-53]], dtype=torch.float64)
    assert draw(probabilities, uniforms).tolist() == [1, 1, 3, 3]


def test_a_seed_decides_the_draws_whatever_the_neighbours():
    logits = torch.randn(3, 40)
    params = [SamplingParams()] * 3
    together = sample(logits, params, [new_generator(s) for s in (5, 6, 7)])
    assert together[1] == sample(logits[1:2], params[:1], [new_generator(6)])[0]


def test_without_a_seed_the_global_generator_decides():
    torch.manual_seed(1)
    first = torch.rand(1, generator=new_generator(None))
    torch.manual_seed(1)
    assert torch.equal(first, torch.rand(1, generator=new_generator(None)))


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e30, 1e300])
def test_extreme_temperatures(temperature):
    logits = torch.tensor([[1.0, 3.0, -torch.inf, 2.0]])
    result = distribution(logits, [SamplingParams(temperature=temperature)])[0]
    expected = [0, 1, 0, 0] if temperature < 1 else [1 / 3, 1 / 3, 0, 1 / 3]
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float32))


def test_ties_and_single_token_vocabulary():
    assert distribution(torch.zeros(1, 4), [SamplingParams(temperature=0)]).tolist() == [[1, 0, 0, 0]]
    assert distribution(torch.zeros(1, 4), [SamplingParams(top_k=1)]).tolist() == [[0.25] * 4]
    everything = SamplingParams(top_k=3, top_p=0.1, min_p=1.0)
    assert distribution(torch.zeros(1, 1), [everything]).tolist() == [[1.0]]
    assert distribution(HAND, [SamplingParams(top_p=1e-300)]).argmax() == 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_broken_logits_are_refused_by_row(bad):
    logits = torch.zeros(3, 4)
    logits[1, 2] = bad
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        sample(logits, [SamplingParams()] * 3, [new_generator(0)] * 3)


def test_logprobs_are_the_models_own():
    result = token_logprobs(HAND, torch.tensor([3]), 2)[0]
    assert result.token == 3
    assert result.logprob == pytest.approx(math.log(0.2))
    assert [token for token, _ in result.top] == [1, 2]
    assert [math.exp(v) for _, v in result.top] == pytest.approx([0.4, 0.3])
    assert len(token_logprobs(HAND, torch.tensor([0]), 100)[0].top) == 4


def test_what_cannot_come_is_not_among_the_most_likely():
    rows = torch.tensor([[0.0, 2.0, -torch.inf, 1.0], [0.0, -torch.inf, -torch.inf, -torch.inf]])
    tops = [[token for token, _ in entry.top] for entry in token_logprobs(rows, torch.tensor([1, 0]), 10**6)]
    assert tops == [[1, 3, 0], [0]]


def test_a_number_that_was_rounded_up_to_one_draws_no_impossible_token():
    """As float32 does on a device without float64."""
    probabilities = torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
    assert draw(probabilities, torch.ones(3, 1, dtype=torch.float64)).tolist() == [1, 2, 0]


@pytest.mark.parametrize(
    "field, values",
    {
        "temperature": [math.nan, math.inf, -0.1],
        "top_p": [0, -0.5, 1.01, math.nan],
        "top_k": [0, -1],
        "min_p": [-0.1, 1.1, math.nan],
        "max_tokens": [-1],
        "stop": [("",), "", ["a", ""], ["a"] * 65, ["a"] * 10_000, "a" * 257],
        "seed": [-1, 2**63],
        "logprobs": [-1],
        "repetition_penalty": [0, 0.001, -1, 1e30, math.nan, math.inf, 10**400],
        "presence_penalty": [2.1, -math.inf, math.nan, -(10**5000)],
        "frequency_penalty": [-2.1, math.inf, math.nan],
        "logit_bias": [{-1: 0}, {0: math.nan}, {0: 101}, {2**40: 1}, {i: 0 for i in range(1025)}],
    }.items(),
)
def test_senseless_settings_are_refused_by_name(field, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^{field}="):
            SamplingParams(**{field: value})


@pytest.mark.parametrize(
    "field, values",
    {
        "temperature": ["hot", None, True, [1.0]],
        "top_p": ["1", None, True],
        "top_k": [1.5, "3", True],
        "max_tokens": [1.5, None, True],
        "stop": [3, None, ("a", None), {"a": 1}],
        "seed": [0.5, "0"],
        "logprobs": [None, 1.0],
        "repetition_penalty": [None, "1"],
        "logit_bias": [None, {"5": 1}, {5: "1"}, [5], [(5, 1, 1)], "5", 5, {True: 1}],
    }.items(),
)
def test_settings_of_a_wrong_type_are_refused(field, values):
    """As a request from outside may bring them; the type checks of this test run forbid the constructor."""
    is_allowed, _ = ALLOWED[field]
    assert not any(is_allowed(value) for value in values)


def test_allowed_edges():
    params = SamplingParams(0, 0, 10**9, 1, 0, "stop", 2**63 - 1, 0)
    assert params.stop == ("stop",) and params.temperature == 0.0
    assert replace(params, stop=["a", "b"]).stop == ("a", "b")
    biased = SamplingParams(logit_bias={7: 1, 3: -100}, repetition_penalty=100, presence_penalty=-2, top_k=10**400)
    assert biased.logit_bias == ((3, -100.0), (7, 1.0)) and hash(biased) == hash(replace(biased, seed=None))
    assert len(SamplingParams(stop=["a" * 256] * 64).stop) == 64
