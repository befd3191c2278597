import math
from dataclasses import dataclass, field

import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from groundup.inference.adjust import adjust_logits, allow_only, check_biases
from groundup.inference.sampling import SamplingParams, distribution, draw, new_generator


@dataclass
class Fixed:
    allowed: Tensor

    def mask(self):
        return self.allowed


@dataclass
class Asking:
    params: SamplingParams
    prompt: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    constraint: Fixed | None = None


def by_the_definition(row: list[float], asking: Asking) -> list[float]:
    """One token after the other, in plain Python."""
    p, result = asking.params, []
    for token, x in enumerate(row):
        x += dict(p.logit_bias).get(token, 0.0)
        if token in asking.prompt or token in asking.tokens:
            x = x / p.repetition_penalty if x > 0 else x * p.repetition_penalty
        count = asking.tokens.count(token)
        x -= p.presence_penalty * (count > 0) + p.frequency_penalty * count
        if asking.constraint is not None and not asking.constraint.allowed.tolist()[token]:
            x = -math.inf
        result.append(x)
    return result


def requests():
    odd = torch.arange(9) % 2 == 1
    return [
        Asking(SamplingParams()),
        Asking(SamplingParams(repetition_penalty=1.7), [1, 1, 4], [5, 1]),
        Asking(SamplingParams(presence_penalty=0.5, frequency_penalty=-0.25), [1, 2], [3, 3, 0, 3]),
        Asking(SamplingParams(logit_bias={0: -100, 8: 2.5})),
        Asking(SamplingParams(repetition_penalty=0.5, frequency_penalty=2, logit_bias={1: 1}), [8], [1, 2], Fixed(odd)),
        Asking(SamplingParams(presence_penalty=2), [4], []),
    ]


def test_a_batch_equals_the_definition_row_by_row():
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)) * 2
    expected = torch.tensor([by_the_definition(row.tolist(), r) for row, r in zip(logits, requests(), strict=True)])
    changed = adjust_logits(logits, requests())
    assert changed is logits
    torch.testing.assert_close(changed, expected)
    for row, request in enumerate(requests()):
        again = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)) * 2
        torch.testing.assert_close(adjust_logits(again[row : row + 1], [request])[0], expected[row], rtol=0, atol=1e-6)


def test_nothing_asked_for_changes_no_bit():
    logits = torch.randn(3, 40)
    before = logits.clone()
    adjust_logits(logits, [Asking(SamplingParams(), [1, 2, 3], [4, 4])] * 3)
    assert torch.equal(logits, before)
    adjust_logits(logits[:0], [])


def test_the_repetition_penalty_is_that_of_transformers():
    logits = torch.randn(1, 50)
    seen = [3, 7, 7, 49, 0]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([seen]), logits.clone())  # type: ignore[arg-type]
    ours = adjust_logits(logits, [Asking(SamplingParams(repetition_penalty=1.3), seen[:2], seen[2:])])
    torch.testing.assert_close(ours, expected)


def test_a_mask_forbids_what_it_does_not_cover():
    row = torch.zeros(6)
    allow_only(row, torch.tensor([True, False, True]))
    assert row.isfinite().tolist() == [True, False, True, False, False, False]


def test_a_bias_cannot_make_a_forbidden_token_possible():
    asking = Asking(SamplingParams(logit_bias={0: 100}), constraint=Fixed(torch.tensor([False, True])))
    assert distribution(adjust_logits(torch.zeros(1, 2), [asking]), [asking.params]).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(repetition_penalty=1.5),
        SamplingParams(presence_penalty=1.0, frequency_penalty=0.4, temperature=0.8),
        SamplingParams(logit_bias={2: 1.5, 7: -1}, top_k=6),
        SamplingParams(repetition_penalty=0.7, frequency_penalty=-0.3, logit_bias={5: -2}, top_p=0.9),
    ],
)
def test_draws_follow_the_adjusted_distribution(params):
    """Chi-square over 20,000 draws against the softmax of the definition."""
    logits = torch.randn(1, 10, generator=torch.Generator().manual_seed(5))
    asking = Asking(params, [0, 1, 2], [2, 2, 9, 5])
    exact = distribution(torch.tensor([by_the_definition(logits[0].tolist(), asking)]), [params])[0].double()
    drawn = distribution(adjust_logits(logits.clone(), [asking]), [params]).expand(20_000, -1)
    tokens = draw(drawn, torch.rand(20_000, 1, generator=new_generator(2), dtype=torch.float64))
    counts, live = torch.bincount(tokens, minlength=10).double(), exact > 0
    assert counts[~live].sum() == 0
    assert stats.chisquare(counts[live], exact[live] / exact.sum() * 20_000).pvalue > 1e-4


def test_extreme_settings_leave_something_to_draw():
    worst = SamplingParams(repetition_penalty=100, presence_penalty=2, frequency_penalty=2, temperature=1e-9)
    logits = torch.full((1, 4), 3e4)
    changed = adjust_logits(logits, [Asking(worst, [0, 1, 2, 3], [0] * 10_000)])
    assert changed.isfinite().all() and distribution(changed, [worst]).sum() == 1


def test_a_bias_of_an_unknown_token_is_named():
    check_biases(SamplingParams(logit_bias={9: 1.0}), 10)
    with pytest.raises(ValueError, match=r"^logit_bias: id 10 is not in the vocabulary \(0 to 9\)"):
        check_biases(SamplingParams(logit_bias={10: 1.0}), 10)
