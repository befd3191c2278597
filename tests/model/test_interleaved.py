"""Rotary pairs side by side and half a head apart."""

import torch

from groundup.model.interleaved import Interleaved


def test_rotary_pairs_go_from_side_by_side_to_half_a_head_apart():
    """Two heads of five channels, of which the last four turn; a matrix's rows and a bias's entries alike."""
    places = Interleaved(channels=5, turned=4)
    rows = torch.arange(10.0)
    assert places.to_half_split(rows).tolist() == [0, 1, 3, 2, 4, 5, 6, 8, 7, 9]
    matrix = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(places.to_pairs(places.to_half_split(matrix)), matrix)
    assert torch.equal(places.to_half_split(matrix), matrix[places.to_half_split(rows).long()])
    six = Interleaved(channels=6, turned=6)
    assert six.to_half_split(torch.arange(6.0)).tolist() == [0, 2, 4, 1, 3, 5]
    assert six.to_pairs(torch.tensor([0.0, 2, 4, 1, 3, 5])).tolist() == [0, 1, 2, 3, 4, 5]
