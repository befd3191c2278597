"""The LSTM as a mixer held to torch's."""

import pytest
import torch

from groundup.model import LSTM, DenseCache, Layout, LSTMConfig, NoCache


def test_against_torchs_lstm_whole_and_in_pieces():
    ours, theirs = LSTM(LSTMConfig(12), 16), torch.nn.LSTM(16, 12, batch_first=True)
    with torch.no_grad():
        ours.wx.weight.copy_(theirs.weight_ih_l0)
        ours.wx.bias.copy_(theirs.bias_ih_l0).add_(theirs.bias_hh_l0)
        ours.wh.weight.copy_(theirs.weight_hh_l0)
    x, positions = torch.randn(2, 9, 16), torch.arange(9).expand(2, -1)
    with torch.no_grad():
        expected = ours.wo(theirs(x)[0])
        torch.testing.assert_close(ours(x, Layout(positions), NoCache()), expected)
        cache = DenseCache()
        pieces = zip(x.split([5, 3, 1], 1), positions.split([5, 3, 1], 1), strict=True)
        torch.testing.assert_close(torch.cat([ours(a, Layout(p), cache) for a, p in pieces], 1), expected)


def test_forget_gates_begin_open():
    """Gates come in the order i, f, g, o."""
    layer = LSTM(LSTMConfig(3), 8)
    assert layer.wx.bias.tolist() == [0.0] * 3 + [1.0] * 3 + [0.0] * 6


def test_config_errors():
    with pytest.raises(ValueError, match="lstm: d_hidden=0; expected at least 1"):
        LSTMConfig(0)
