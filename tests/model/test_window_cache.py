"""A cache cut to the window gives what the whole one gives, in bounded room."""

import pytest
import torch

from groundup.model import (
    AttentionConfig,
    BlockConfig,
    DenseCache,
    LatentAttentionConfig,
    MLPConfig,
    WindowCache,
)

from .variants import build, small, tokens

MIXERS = {
    "window": AttentionConfig(4, 2, 4, window=5),
    "window_of_one": AttentionConfig(4, 2, 4, window=1),
    "sinks": AttentionConfig(4, 2, 4, window=4, sink_tokens=3),
    "latent": LatentAttentionConfig(4, kv_rank=8, d_nope=4, d_rope=2, d_value=6, window=4),
}


def model_of(mixer):
    return build(small(BlockConfig(mixer, MLPConfig(24))))


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("pieces", [[1] * 40, [17, 1, 1, 1, 1, 9, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], [40]])
def test_logits_are_those_of_the_whole_sequence(name, pieces):
    model, x = model_of(MIXERS[name]), tokens(2, 40)
    with torch.no_grad():
        whole, caches = model(x), model.new_caches()
        found = torch.cat([model(piece, caches=caches) for piece in x.split(pieces, 1)], 1)
    assert all(isinstance(cache, WindowCache) for cache in caches)
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", MIXERS)
def test_rows_of_different_lengths_with_padding(name):
    """A row runs out while the other goes on, and both have padding inside."""
    model, x = model_of(MIXERS[name]), tokens(2, 30)
    positions = torch.arange(30).repeat(2, 1)
    ragged = torch.cat([positions[:, :9], torch.full((2, 2), -1), positions[:, 9:]], 1)
    ragged[1, 4:11] = torch.tensor([-1, -1, -1, -1, -1, -1, -1])
    ragged[1, 11:] = torch.where(torch.arange(4, 25) < 12, torch.arange(4, 25), -1)
    padded = torch.cat([x[:, :9], x[:, :2], x[:, 9:]], 1)
    dense, windowed = [DenseCache() for _ in model.blocks], model.new_caches()
    with torch.no_grad():
        for start, end in [(0, 11), *((i, i + 1) for i in range(11, 32))]:
            step = padded[:, start:end], ragged[:, start:end]
            expected, found = (model(*step, caches=caches) for caches in (dense, windowed))
            real = step[1] >= 0
            torch.testing.assert_close(found[real], expected[real], rtol=1e-4, atol=2e-5)
    assert windowed[0].next_positions().tolist() == [[30], [12]]


@pytest.mark.parametrize("name", MIXERS)
def test_room_stays_bounded(name):
    mixer = MIXERS[name]
    model, x = model_of(mixer), tokens(1, 200)
    caches = model.new_caches(200)
    with torch.no_grad():
        for piece in x.split(1, 1):
            model(piece, caches=caches)
    most = max(mixer.window - 1, 1) + getattr(mixer, "sink_tokens", 0)
    assert all(1 <= cache._positions.shape[1] <= 2 * most + 2 for cache in caches)


def test_only_layers_with_a_window_forget():
    blocks = [BlockConfig(MIXERS["window"], MLPConfig(24)), BlockConfig(AttentionConfig(4, 2, 4), MLPConfig(24))]
    assert [type(cache) for cache in build(small(*blocks)).new_caches()] == [WindowCache, DenseCache]


def test_cropping_only_before_anything_was_dropped():
    cache, step = WindowCache(3), torch.zeros(1, 1, 2, 4)
    cache.append(torch.tensor([[0]]), step)
    cache.append(torch.tensor([[1]]), step)
    cache.crop(1)
    assert cache.length == 1 and cache.next_positions().item() == 1
    for position in range(1, 10):
        cache.append(torch.tensor([[position]]), step)
    for length in (1, 8, 27):
        with pytest.raises(ValueError, match="window of 3 has dropped tokens"):
            cache.crop(length)
