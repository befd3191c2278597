import torch

from groundup.device import CACHE_LINE
from groundup.inference.batch_cache import new_streams

CPU = torch.device("cpu")


def test_streams_lie_one_after_another_from_cache_lines_on_and_do_not_overlap():
    shapes = [[(3, 5), (2, 3, 7)], [], [(4, 1)]]
    streams = new_streams(shapes, torch.bfloat16, CPU)
    assert [[tuple(s.shape) for s in of_layer] for of_layer in streams] == shapes
    flat = [stream for of_layer in streams for stream in of_layer]
    assert all(s.dtype == torch.bfloat16 and s.is_contiguous() and not s.any() for s in flat)
    assert all(s.data_ptr() % CACHE_LINE == 0 for s in flat)
    for number, stream in enumerate(flat):
        stream.fill_(number + 1)
    assert [s.unique().tolist() for s in flat] == [[1], [2], [3]]


def test_layers_without_streams_and_other_devices():
    assert new_streams([[], []], torch.float32, CPU) == [[], []]
    [[stream]] = new_streams([[(2, 3)]], torch.float32, torch.device("meta"))
    assert stream.shape == (2, 3) and stream.device.type == "meta"
