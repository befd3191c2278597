"""One block of weights times up to 12 rows, in every format and on processors with and without products of bfloat16."""

import ctypes

import pytest
import torch

from groundup.inference.decode import tile
from groundup.inference.decode.pack import pack, rounded
from groundup.native import emit

FORMATS = ("fp32", "bf16", "int8", "int4")
ROWS = (1, 2, 4, 8, 12)


def product(tiles, packed, x, place):
    """x (rows, inputs) through the tile at `place`; integers are given as they are, with a scale of one."""
    rows, inputs = x.shape
    kind = {0: torch.float32, 1: torch.bfloat16, 2: torch.int16, 3: torch.int16}[packed.format]
    record = torch.zeros(rows, 4 * inputs + 4 * packed.groups, dtype=torch.uint8)
    record[:, : inputs * kind.itemsize] = x.to(kind).contiguous().view(torch.uint8)
    record[:, 4 * inputs :] = x.unflatten(1, (-1, 32)).sum(-1).contiguous().view(torch.uint8)
    y = torch.empty(rows, 32)
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 7)(int(tiles[place]))
    at = record.data_ptr()
    call(
        packed.values.data_ptr(), packed.scales.data_ptr(), at, record.shape[1], at + 4 * inputs, y.data_ptr(),
        packed.groups,
    )  # fmt: skip
    return y


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("portable", [False, True])
def test_every_tile_is_the_product_with_the_rounded_block(monkeypatch, kind, portable):
    if portable:
        monkeypatch.setattr(emit, "has_bf16_products", lambda: False)
    tiles = tile.tiles.__wrapped__(kind)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 96, generator=generator)
    packed = pack(weight, kind)
    for place, rows in enumerate(tile.SIZES[kind]):
        x = torch.randint(-300, 300, (rows, 96), generator=generator).float()
        x = x.bfloat16().float() if kind == "bf16" else x
        right = x.double() @ rounded(weight, kind).double().T
        torch.testing.assert_close(product(tiles, packed, x, place).double(), right, rtol=1e-4, atol=2e-2)


def test_sizes_cover_what_the_step_asks_for():
    for kind in FORMATS:
        sizes = tile.SIZES[kind]
        assert all(size == rows or (rows >= 8 and 2 * size == rows) for size, rows in zip(sizes, ROWS, strict=True))
