"""Further tokens: alignment by hand, causality, the loss, and drafts."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from groundup import presets
from groundup.model import Balance, MoEConfig, MultiTokenConfig, NoCache, Transformer, acceptance_rate, draft
from groundup.optim import AdamW
from groundup.train import next_token, train
from groundup.train.objectives import multi_token
from tests.train.small import Batches, batch, tiny_model

from .variants import build, tokens

CONFIG = presets.llama(vocab_size=50, d_model=16, num_layers=2, num_heads=2, d_ff=24)


def model(depth=2, **options):
    return build(replace(CONFIG, multi_token=MultiTokenConfig(depth, **options)))


def states(made, x):
    return made.multi_token(made, made.hidden(x[:, :-1]), x[:, 1:-1])


def test_logits_of_the_model_itself_do_not_change():
    plain, made = build(CONFIG), model()
    plain.load_state_dict({n: t for n, t in made.state_dict().items() if not n.startswith("multi_token")})
    assert torch.equal(plain(tokens()), made(tokens()))
    torch.testing.assert_close(
        next_token(plain, {"tokens": tokens()}).total, next_token(made, {"tokens": tokens()}).total
    )


def test_one_depth_by_the_formula():
    made, x = model(1), tokens()
    (found,) = states(made, x)
    depth, hidden = made.multi_token.depths[0], made.hidden(x[:, :-1])
    both = torch.cat([depth.hidden_norm(hidden[:, :-1]), depth.token_norm(made.embed(x[:, 1:-1]))], -1)
    layout = made.layout(x[:, 1:-1])
    expected = depth.final_norm(depth.block(depth.combine(both), layout, NoCache()))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("k", [1, 2])
def test_depth_k_at_place_i_sees_tokens_up_to_i_plus_k_and_no_further(k):
    made, x, i = model(), tokens(1, 9), 3
    changes = []
    with torch.no_grad():
        before = states(made, x)[k - 1][0, i]
        for place in range(8):  # the last token is a target only
            changed = x.clone()
            changed[0, place] = (x[0, place] + 1) % 50
            changes.append(not torch.allclose(states(made, changed)[k - 1][0, i], before, atol=1e-6))
    assert changes == [place <= i + k for place in range(8)]


def test_the_loss_is_the_mean_over_depths_of_each_ones_cross_entropy():
    made, x = model(2, weight=0.3), tokens()
    loss, main = multi_token(made, {"tokens": x}), next_token(made, {"tokens": x})
    each = [
        F.cross_entropy(made.logits(state).flatten(0, 1), x[:, k + 1 :].flatten(), reduction="sum")
        for k, state in enumerate(states(made, x), 1)
    ]
    torch.testing.assert_close(loss.total, main.total + 0.3 / 2 * (each[0] + each[1]))
    torch.testing.assert_close(torch.stack([loss.metrics["ahead_2"], loss.metrics["ahead_3"]]), torch.stack(each))
    assert loss.weight == main.weight == 16
    loss.total.backward()
    assert all(p.grad is not None for p in made.parameters())


def test_masks_and_documents_leave_predictions_out():
    made, x = model(1), tokens(1, 9)
    mask = torch.zeros(1, 9)
    mask[0, 5] = 1.0  # token 5 is predicted from 4 by the model, from 3 and 4 by the module
    found = multi_token(made, {"tokens": x, "mask": mask}).metrics["ahead_2"]
    by_hand = -made.logits(states(made, x)[0])[0, 3].log_softmax(-1)[x[0, 5]]
    torch.testing.assert_close(found, by_hand)
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    packed = multi_token(made, {"tokens": x, "segments": segments})
    parts = [multi_token(made, {"tokens": x[:, :5]}), multi_token(made, {"tokens": x[:, 4:]})]
    torch.testing.assert_close(packed.metrics["ahead_2"], sum(p.metrics["ahead_2"] for p in parts))


def test_balancing_losses_of_a_modules_own_experts_are_in_the_total():
    block = replace(CONFIG.blocks[0], ffn=MoEConfig(4, 2, 8, balance=Balance(load=1.0)))
    made = build(replace(CONFIG, blocks=(block,), multi_token=MultiTokenConfig(1, weight=0.0)))
    both, main = (objective(made, {"tokens": tokens()}).metrics["auxiliary"] for objective in (multi_token, next_token))
    assert both > main * 1.3  # three layers instead of two, each about 1


def test_drafts_are_what_the_states_say():
    made, x = model(2), tokens(3, 6)
    with torch.no_grad():
        first = made(x)[:, -1].argmax(-1, keepdim=True)
        longer = torch.cat([x, first], 1)
        hidden, further = made.hidden(x), made.multi_token
        assert further is not None
        second = made.logits(further(made, hidden, longer[:, 1:])[0][:, -1]).argmax(-1, keepdim=True)
        longest = torch.cat([longer, second], 1)
        third = made.logits(further(made, hidden, longest[:, 1:])[1][:, -1]).argmax(-1, keepdim=True)
    assert torch.equal(draft(made, x), torch.cat([first, second, third], 1))


@pytest.mark.slow
def test_a_trained_module_drafts_what_the_model_says():
    """Rows that count up: the token after the next is certain, so nearly every draft is accepted; untrained, few."""
    made = Transformer(replace(tiny_model().config, multi_token=MultiTokenConfig(1)))
    made.init_weights(0)
    prompt = batch(99)["tokens"][:, :4]
    before = acceptance_rate(made, prompt, 8)[0]
    train(made, Batches(), multi_token, AdamW(made, lr=1e-2), 60, progress=False)
    assert before < 0.5 and acceptance_rate(made, prompt, 8)[0] > 0.9


def test_acceptance_counts_a_depth_only_behind_right_ones():
    """Against drafts made one by one; with a vocabulary of three, models that learned nothing are often right."""
    told_apart = False
    for seed in range(4):
        made = build(replace(CONFIG, vocab_size=3, multi_token=MultiTokenConfig(2)), seed)
        text = torch.tensor([[0, 1, 2, seed % 3]])
        rates = acceptance_rate(made, text, 12)
        with torch.no_grad():
            for _ in range(12):
                text = torch.cat([text, made(text)[:, -1:].argmax(-1)], 1)
            drafts = {n: draft(made, text[:, :n])[0].tolist() for n in range(4, 15)}
        said = text[0].tolist()
        first = [drafts[n][1] == said[n + 1] for n in range(4, 15)]
        second = [drafts[n][2] == said[n + 2] for n in range(4, 14)]
        both = [a and b for a, b in zip(first, second, strict=False)]
        assert rates == [pytest.approx(sum(first) / 11), pytest.approx(sum(both) / 10)]
        told_apart |= second != both
    assert told_apart


def test_errors():
    with pytest.raises(ValueError, match="depth=0; expected at least 1"):
        MultiTokenConfig(0)
    with pytest.raises(ValueError, match="weight=-1"):
        MultiTokenConfig(1, -1.0)
    with pytest.raises(ValueError, match="has no multi-token modules"):
        multi_token(tiny_model(), batch(0))
    assert math.isfinite(float(multi_token(model(), {"tokens": tokens()}).total.detach()))
