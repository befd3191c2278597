import pytest
import torch
import torch.nn.functional as F

from groundup.compression.importance import block_influence, input_norms, part_scores, weight_scores
from groundup.train import next_token
from tests.compression.small import batch, batches, small_model


def recorded_inputs(model, path, given):
    """What a layer read, by a forward pass of its own."""
    seen = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    with torch.no_grad():
        for each in given:
            model(each["tokens"][:, :-1])
    handle.remove()
    return torch.cat([x.flatten(0, 1) for x in seen])


def test_input_norms_and_wanda_by_hand():
    model, given = small_model(), batches()
    norms, scores = input_norms(model, given), weight_scores(model, "activations", given)
    names = ("mixer.wq", "mixer.wk", "mixer.wv", "mixer.wo", "ffn.gate", "ffn.up", "ffn.down")
    assert set(norms) == {f"blocks.{i}.{name}" for i in range(3) for name in names}
    for path in ("blocks.0.mixer.wo", "blocks.2.ffn.down"):
        x, weight = recorded_inputs(model, path, given), model.get_submodule(path).weight
        torch.testing.assert_close(norms[path], x.norm(dim=0))
        torch.testing.assert_close(scores[path], weight.detach().abs() * x.norm(dim=0))


def test_gradient_scores_are_derivatives_by_a_factor_on_the_part():
    """|dL/dm| of a factor m on a head, a channel and a layer, by finite differences in float64."""
    model, b = small_model(seed=1).double(), batch(5)
    model.compute_dtype = torch.float64
    scores = part_scores(model, "gradients", [b])

    def loss_with(columns, factor):
        saved = [(w, w.detach().clone()) for w, _ in columns]
        with torch.no_grad():
            for weight, where in columns:
                weight[:, where] *= factor
            loss = next_token(model, b)
            for weight, before in saved:
                weight.copy_(before)
        return float(loss.total / loss.weight)

    def derivative(*columns):
        return (loss_with(columns, 1 + 1e-5) - loss_with(columns, 1 - 1e-5)) / 2e-5

    wo, down = (model.get_submodule(f"blocks.1.{name}").weight for name in ("mixer.wo", "ffn.down"))
    assert float(scores[1].heads[2]) == pytest.approx(abs(derivative((wo, slice(16, 24)))), rel=1e-4)
    assert float(scores[1].channels[7]) == pytest.approx(abs(derivative((down, slice(7, 8)))), rel=1e-4)
    both = abs(derivative((wo, slice(None)))) + abs(derivative((down, slice(None))))
    assert scores[1].layer == pytest.approx(both, rel=1e-4)


def test_block_influence_is_the_turn_of_the_residual_stream():
    model, given = small_model(), batches()
    entered, left = [], []

    def keep(_, inputs, output):
        entered.append(inputs[0].detach())
        left.append(output.detach())

    with model.blocks[1].register_forward_hook(keep):
        influence = block_influence(model, given)
    cosine = F.cosine_similarity(torch.cat(entered), torch.cat(left), dim=-1).mean()
    assert influence[1] == pytest.approx(1 - float(cosine), abs=1e-6)
    assert [each.layer for each in part_scores(model, "activations", given)] == influence


def test_a_part_that_does_nothing_scores_lowest():
    for by in ("weights", "activations", "gradients"):
        model = small_model()
        with torch.no_grad():
            model.get_submodule("blocks.0.mixer.wo").weight[:, 8:16] = 0
            model.get_submodule("blocks.2.ffn.down").weight[:, 11] = 0
        scores = part_scores(model, by, batches())
        assert int(scores[0].heads.argmin()) == 1 and float(scores[0].heads[1]) == 0
        assert int(scores[2].channels.argmin()) == 11
        assert scores[0].heads.shape == (4,) and scores[0].channels.shape == (48,)


def test_the_model_is_left_as_it_was_and_mistakes_are_named():
    model = small_model().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    part_scores(model, "gradients", batches())
    assert model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="calibration text"):
        part_scores(model, "activations")
    with pytest.raises(ValueError, match="did you mean 'gradients'"):
        part_scores(model, "gradient", batches())
