"""Attention and the losses go into one graph of torch.compile, forward and backward, with their kernels in it."""

import pytest

from tests.kernels.triton.graphs import kernels_in_graph

pytest.importorskip("triton")


@pytest.mark.slow
def test_kernels_are_launched_from_one_graph():
    """A graph that breaks, or an argument that cannot be traced, is an error there."""
    here, streams = "tests.kernels.triton.graph_cases", [(2, 40, 4, 16), (2, 40, 2, 16), (2, 40, 2, 16)]
    cases = {
        "attention_of_documents": [*streams, (4,), (4,)],
        "attention_from_zero": streams,
        "attention_of_one_query": [(2, 1, 4, 16), *streams[1:]],
        "loss": [(5, 50)],
        "loss_with_head": [(20, 16), (50, 16)],
    }
    counts = kernels_in_graph([(here, name, shapes) for name, shapes in cases.items()])
    # forward, dK with dV, dQ; spans and their sum; the loss and its gradient; one per chunk
    assert dict(zip(cases, counts, strict=True)) == dict(zip(cases, [3, 3, 2, 2, 3], strict=True))
