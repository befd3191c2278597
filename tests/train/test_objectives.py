import dataclasses

import pytest
import torch
import torch.nn.functional as F

from groundup.model.transformer import Transformer
from groundup.train import next_token
from tests.train.small import batch, tiny_model


def test_equals_cross_entropy_of_the_logits():
    model, b = tiny_model(), batch(0)
    loss = next_token(model, b)
    logits = model(b["tokens"][:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), b["tokens"][:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(loss.total, expected)
    assert float(loss.weight) == 32.0


def test_the_mask_weighs_each_prediction_and_its_first_column_nothing():
    model, b = tiny_model(), batch(0)
    mask = torch.zeros(4, 9)
    mask[:, 0] = 100.0
    mask[1, 3], mask[2, 8] = 1.0, 0.5
    loss = next_token(model, b | {"mask": mask})
    log_probs = model(b["tokens"][:, :-1]).log_softmax(-1)
    by_hand = -log_probs[1, 2, b["tokens"][1, 3]] - 0.5 * log_probs[2, 7, b["tokens"][2, 8]]
    torch.testing.assert_close(loss.total, by_hand)
    assert float(loss.weight) == 1.5


def test_nothing_counted_is_zero_and_has_a_zero_gradient():
    model = tiny_model()
    loss = next_token(model, batch(0) | {"mask": torch.zeros(4, 9)})
    loss.total.backward()
    assert loss.total.item() == loss.weight.item() == 0.0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters() if p.grad is not None)


def test_segments_hide_the_document_before():
    model = tiny_model()
    tokens = batch(0, rows=1)["tokens"]
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    packed = next_token(model, {"tokens": tokens, "segments": segments})
    parts = [next_token(model, {"tokens": tokens[:, :5]}), next_token(model, {"tokens": tokens[:, 4:]})]
    torch.testing.assert_close(packed.total, parts[0].total + parts[1].total)


def test_a_soft_capped_head_is_capped():
    model = tiny_model()
    capped = Transformer(dataclasses.replace(model.config, logit_softcap=0.5))
    capped.load_state_dict(model.state_dict())
    b = batch(0)
    expected = F.cross_entropy(capped(b["tokens"][:, :-1]).flatten(0, 1), b["tokens"][:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(next_token(capped, b).total, expected)


def test_z_loss_pulls_the_denominator_towards_one():
    model, b = tiny_model(), batch(0)
    with torch.no_grad():
        model.head_weight.mul_(20)
    logits = model(b["tokens"][:, :-1])
    plain, pulled = next_token(model, b), next_token(model, b, z_loss=0.5)
    torch.testing.assert_close(pulled.total, plain.total + 0.5 * logits.logsumexp(-1).square().sum())
    for _ in range(20):
        model.zero_grad()
        next_token(model, b, z_loss=10.0).total.backward()
        with torch.no_grad():
            gradient = model.head_weight.grad
            assert gradient is not None
            model.head_weight.sub_(1e-4 * gradient)
    assert model(b["tokens"][:, :-1]).logsumexp(-1).square().mean() < logits.logsumexp(-1).square().mean()


def test_a_model_that_sees_the_next_token_is_not_trained_to_predict_it():
    config = tiny_model().config
    block = dataclasses.replace(config.blocks[0], mixer=dataclasses.replace(config.blocks[0].mixer, causal=False))
    with pytest.raises(ValueError, match="next_token: .* sees the very token .* train it with masked_tokens"):
        next_token(Transformer(dataclasses.replace(config, blocks=(block,))), batch(0))


@pytest.mark.parametrize("bad", [-1, 31, -100, 10**9])
def test_ids_outside_the_vocabulary_are_refused(bad):
    b = batch(0)
    b["tokens"][3, 8] = bad
    with pytest.raises(ValueError, match=f"row 3, position 8: token id {bad} "):
        next_token(tiny_model(), b)
