import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup.compression.importance import weight_scores
from groundup.compression.prune import (
    apply_masks,
    is_semi_structured,
    kept_masks,
    semi_structured_masks,
    sparse_masks,
    sparsity,
)
from groundup.optim import AdamW, muon_adamw
from groundup.train import next_token, train
from tests.compression.small import batch, batches, small_model, trained


def test_by_hand():
    scores = {"a": torch.tensor([[9.0, 1, 4, 2], [7, 8, 3, 6]])}
    assert sparse_masks(scores, 0.5, "row")["a"].int().tolist() == [[1, 0, 1, 0], [1, 1, 0, 0]]
    assert sparse_masks(scores, 0.5, "tensor")["a"].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 1]]
    assert semi_structured_masks(scores)["a"].int().tolist() == [[1, 0, 1, 0], [1, 1, 0, 0]]
    several = scores | {"b": torch.tensor([[10.0, 11]])}
    kept = sparse_masks(several, 0.5, "model")
    assert kept["a"].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]] and kept["b"].all()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.floats(0, 0.99))
def test_exactly_the_lowest_go_whatever_ties_there_are(values, share):
    scores = torch.tensor([values], dtype=torch.float)
    mask = sparse_masks({"a": scores}, share)["a"][0]
    gone = sorted(range(len(values)), key=lambda i: (values[i], i))[: round(share * len(values))]
    assert [i for i, keep in enumerate(mask.tolist()) if not keep] == sorted(gone)


@pytest.mark.parametrize("by", ["weights", "activations"])
@pytest.mark.parametrize("scope", ["row", "tensor", "model"])
def test_a_model_has_the_asked_sparsity(by, scope):
    model = small_model()
    scores = weight_scores(model, by, batches())
    apply_masks(model, sparse_masks(scores, 0.5, scope))
    assert sparsity(model, scores) == pytest.approx(0.5, abs=1e-6)
    assert float((model.embed.weight == 0).float().mean()) == 0  # neither ends nor norms


def test_two_of_four_are_the_best_two():
    model = small_model()
    scores = weight_scores(model, "activations", batches())
    masks = semi_structured_masks(scores)
    assert not is_semi_structured(model.get_submodule("blocks.0.ffn.up").weight)
    apply_masks(model, masks)
    for path, score in scores.items():
        assert is_semi_structured(model.get_submodule(path).weight)
        for row, four in itertools.product(range(3), range(0, 16, 4)):
            best = set(score[row, four : four + 4].topk(2).indices.tolist())
            assert {i for i in range(4) if masks[path][row, four + i]} == best
    assert sparsity(model, masks) == 0.5
    assert not is_semi_structured(torch.ones(2, 6))


def test_scores_that_know_the_inputs_prune_better():
    """On a trained model whose inputs differ in scale, Wanda's masks cost less than magnitudes."""
    model, held_out = trained(small_model(), steps=25), batches(500)
    with torch.no_grad():  # a scale that moves between a norm's gain and the matrix changes nothing but |w|
        for block in model.blocks:
            gains = torch.logspace(-2, 2, 32)
            block.ffn_norm.weight *= gains  # pyright: ignore
            for layer in ("gate", "up"):
                block.get_submodule(f"ffn.{layer}").weight.div_(gains)  # pyright: ignore
    before = {name: t.clone() for name, t in model.state_dict().items()}
    losses = {}
    for by in ("weights", "activations"):
        model.load_state_dict(before)
        apply_masks(model, sparse_masks(weight_scores(model, by, batches(900)), 0.5, "row"))
        with torch.no_grad():
            losses[by] = sum(float(next_token(model, b).total) for b in held_out)
    assert losses["activations"] < 0.95 * losses["weights"]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_training_keeps_zeros_and_learns(name):
    model = small_model()
    masks = semi_structured_masks(weight_scores(model))
    apply_masks(model, masks)
    with torch.no_grad():
        before = float(next_token(model, batch(0)).total)
    optimizer = AdamW(model, lr=1e-2) if name == "adamw" else muon_adamw(model, lr=1e-2)
    with kept_masks(model, masks) as every:
        train(model, (batch(n) for n in range(15)), next_token, optimizer, 15, every=every, progress=False)
    for path, mask in masks.items():
        weight = model.get_submodule(path).weight
        assert torch.equal(weight[~mask], torch.zeros(int((~mask).sum()))) and is_semi_structured(weight)
    with torch.no_grad():
        assert float(next_token(model, batch(0)).total) < 0.9 * before
    next_token(model, batch(0)).total.backward()
    assert float(model.get_submodule("blocks.0.ffn.up").weight.grad[~masks["blocks.0.ffn.up"]].abs().max()) > 0


def test_pruned_weights_count_in_no_gradient():
    model = small_model()
    masks = sparse_masks(weight_scores(model), 0.7)
    with kept_masks(model, masks):
        next_token(model, batch(0)).total.backward()
    for path, mask in masks.items():
        assert float(model.get_submodule(path).weight.grad[~mask].abs().sum()) == 0


def test_mistakes_are_named():
    model = small_model()
    with pytest.raises(ValueError, match="sparsity=1.5"):
        sparse_masks(weight_scores(model), 1.5)
    with pytest.raises(ValueError, match="did you mean 'tensor'"):
        sparse_masks(weight_scores(model), 0.5, "tensors")
    with pytest.raises(ValueError, match="6 inputs, which 4 does not divide"):
        semi_structured_masks({"a": torch.ones(2, 6)})
    with pytest.raises(ValueError, match="4 of 4 weights"):
        semi_structured_masks({"a": torch.ones(2, 8)}, 4)
    with pytest.raises(ValueError, match=r"no layer blocks\.9"):
        apply_masks(model, {"blocks.9.ffn.up": torch.ones(1, 1, dtype=torch.bool)})
    with pytest.raises(ValueError, match="its mask"):
        apply_masks(model, {"blocks.0.ffn.up": torch.ones(1, 1, dtype=torch.bool)})
