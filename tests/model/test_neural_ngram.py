"""The neural n-gram as a mixer: by hand, against the equations of Bengio et al. 2003, and its window."""

import math

import pytest
import torch

from groundup.accounting import count_parameters
from groundup.model import (
    BlockConfig,
    DenseCache,
    Layout,
    ModelConfig,
    NeuralNgram,
    NeuralNgramConfig,
    NoCache,
    Transformer,
)
from groundup.model.neural_ngram import windows
from groundup.optim import AdamW

from .variants import build, tokens


def mixer_of(model) -> NeuralNgram:
    mixer = model.blocks[0].mixer
    assert isinstance(mixer, NeuralNgram)
    return mixer


def alone(mixer, vocab_size=50, d_model=16):
    """The model of 2003: one layer, no norm, no feed-forward layer."""
    block = BlockConfig(mixer, None, placement="none")
    return ModelConfig(vocab_size, d_model, 1, (block,), context_length=16, final_norm=False)


def test_by_hand():
    """One channel, one unit, two tokens seen: 2 tanh(x_t / 2 + x_{t-1} / 4), with nothing before the first."""
    mixer = NeuralNgram(NeuralNgramConfig(3, 1), 1)
    with torch.no_grad():
        mixer.wh.weight.copy_(torch.tensor([[0.5, 0.25]]))
        mixer.wo.weight.fill_(2.0)
        out = mixer(torch.tensor([[[1.0], [2.0], [3.0]]]), Layout(torch.arange(3)[None], None, True), NoCache())
    torch.testing.assert_close(out.flatten(), 2 * torch.tensor([0.5, 1.25, 2.0]).tanh())


def test_windows_by_hand():
    """Newest first; the third token begins a document, so it and the fourth see nothing from before it."""
    x, before = torch.tensor([[[3.0], [4.0], [5.0], [6.0]]]), torch.tensor([[[1.0], [2.0]]])
    assert windows(x, before, None)[0].tolist() == [[3, 2, 1], [4, 3, 2], [5, 4, 3], [6, 5, 4]]
    resets = torch.tensor([[False, False, True, False]])
    assert windows(x, before, resets)[0].tolist() == [[3, 2, 1], [4, 3, 2], [5, 0, 0], [6, 5, 0]]


@pytest.mark.parametrize("direct", [False, True])
def test_against_the_equations_of_2003(direct):
    """y = W x + U tanh(d + H x), position by position, with U and W multiplied out as the docstring says."""
    model = build(alone(NeuralNgramConfig(4, 12, direct))).double()
    model.compute_dtype = torch.float64
    mixer, head, table = mixer_of(model), model.head_weight, model.embed.weight
    u = head @ mixer.wo.weight
    newest = torch.cat([torch.eye(16), torch.zeros(16, 32)], 1).double()
    w = head @ (newest if mixer.direct is None else newest + mixer.direct.weight)
    assert mixer.wh.bias is not None
    ids = tokens(1, 7)
    with torch.no_grad():
        logits = model(ids)[0]
        for t in range(7):
            vectors = [table[ids[0, t - i]] if t >= i else torch.zeros(16).double() for i in range(3)]
            x = torch.cat(vectors)
            expected = w @ x + u @ torch.tanh(mixer.wh.bias + mixer.wh.weight @ x)
            torch.testing.assert_close(logits[t], expected)


def test_the_direct_connection_can_undo_the_residual_one():
    """With -I on the newest token, what is left is U tanh(d + H x): the model without direct connections."""
    model = build(alone(NeuralNgramConfig(3, 12, direct=True)))
    mixer, ids = mixer_of(model), tokens(2, 9)
    assert mixer.direct is not None
    with torch.no_grad():
        mixer.direct.weight.copy_(torch.cat([-torch.eye(16), torch.zeros(16, 16)], 1))
        x = windows(model.embed(ids), torch.zeros(2, 1, 16), None)
        expected = torch.tanh(mixer.wh(x)) @ (model.head_weight @ mixer.wo.weight).T
        torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=1e-4)


def test_exactly_the_window_is_seen():
    model, ids = build(alone(NeuralNgramConfig(4, 12))), tokens(1, 9)
    with torch.no_grad():
        whole = model(ids)
        for changed in range(9):
            other = ids.clone()
            other[0, changed] = (ids[0, changed] + 1) % 50
            differs = (model(other) != whole).any(-1)[0].nonzero().flatten().tolist()
            assert differs == list(range(changed, min(9, changed + 3)))


def test_decoding_in_pieces_and_of_the_least_order():
    for order in (2, 5):
        model, ids = build(alone(NeuralNgramConfig(order, 12, direct=True))), tokens(2, 9)
        caches = [DenseCache()]
        with torch.no_grad():
            pieces = torch.cat([model(part, caches=caches) for part in ids.split([4, 1, 1, 3], 1)], 1)
            torch.testing.assert_close(pieces, model(ids), rtol=1e-4, atol=2e-5)


def test_parameters_by_hand():
    """Table and head 2 x 50 x 16, H 3 x 16 x 12 with 12 biases, wo 12 x 16, the direct path 3 x 16 x 16."""
    assert count_parameters(alone(NeuralNgramConfig(4, 12))).total == 1600 + 576 + 12 + 192
    assert count_parameters(alone(NeuralNgramConfig(4, 12, direct=True))).total == 1600 + 576 + 12 + 192 + 768


@pytest.mark.parametrize(("order", "reached"), [(3, True), (2, False)])
def test_it_learns_what_its_order_can_see(order, reached):
    """The third bit is the exclusive or of two fair ones: of no use is one alone, nor any linear map of both."""
    ids = torch.tensor([[a, b, a ^ b] for a in (0, 1) for b in (0, 1)])
    model = Transformer(alone(NeuralNgramConfig(order, 16), vocab_size=2))
    optimizer = AdamW(model, 0.01, weight_decay=0.0)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(model(ids[:, :2])[:, 1], ids[:, 2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (loss.item() < 0.05) if reached else (loss.item() > math.log(2) - 0.001)


def test_config_errors():
    with pytest.raises(ValueError, match="neural n-gram: order=1; expected at least 2"):
        NeuralNgramConfig(1)
    with pytest.raises(ValueError, match="neural n-gram: d_hidden=0; expected at least 1"):
        NeuralNgramConfig(3, 0)
