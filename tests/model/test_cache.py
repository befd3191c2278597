import pytest
import torch

from groundup.model import (
    AttentionConfig,
    BlockConfig,
    CountingCache,
    DenseCache,
    MLPConfig,
    ModelConfig,
    NoCache,
    PagedCache,
    PagePool,
    Transformer,
)

from .variants import build, small, tokens

GQA = BlockConfig(AttentionConfig(4, 2, 4), MLPConfig(24))


def stream(positions, width=3):
    """A stream whose content tells where it came from."""
    row = torch.arange(positions.shape[0]).view(-1, 1, 1, 1)
    return (100.0 * row + positions[..., None, None]).expand(*positions.shape, 2, width).contiguous()


def made(kind):
    return DenseCache() if kind == "dense" else PagedCache(PagePool(16, 4), batch=2)


def test_no_cache_is_the_identity():
    positions = torch.arange(3)[None]
    k = stream(positions)
    assert NoCache().append(positions, k)[1] is k
    assert NoCache().state(torch.ones(2))[0].abs().max() == 0 and NoCache().length == 0


@pytest.mark.parametrize("kind", ["dense", "paged"])
def test_what_goes_in_comes_out_in_order(kind):
    cache, at = made(kind), 0
    for n in (3, 1, 1, 4, 1, 7):
        positions = torch.arange(at, at + n).expand(2, n)
        k_pos, k, latent = cache.append(positions, stream(positions), stream(positions)[:, :, 0])
        at += n
        whole = torch.arange(at).expand(2, at)
        assert cache.length == at
        assert torch.equal(k_pos, whole) and torch.equal(k, stream(whole))
        assert torch.equal(latent, stream(whole)[:, :, 0])


@pytest.mark.parametrize("kind", ["dense", "paged"])
def test_crop_forgets_and_appending_goes_on(kind):
    cache, positions = made(kind), torch.arange(9).expand(2, 9)
    cache.append(positions, stream(positions))
    cache.crop(5)
    assert cache.length == 5 and cache.next_positions().tolist() == [[5], [5]]
    k_pos, k = cache.append(torch.full((2, 1), 5), stream(torch.full((2, 1), 7)))
    assert k_pos.tolist() == [[0, 1, 2, 3, 4, 5]] * 2 and k[0, :, 0, 0].tolist() == [0, 1, 2, 3, 4, 7]
    cache.crop(100)
    assert cache.length == 6


def test_dense_capacity_doubles_instead_of_copying_every_time():
    cache, buffers = DenseCache(capacity=4), set()
    for i in range(33):
        positions = torch.full((1, 1), i)
        buffers.add(cache.append(positions, stream(positions))[1].data_ptr())
    assert len(buffers) == 5  # 4, 8, 16, 32, 64


def test_dense_heads_are_stored_so_that_attention_needs_no_copy():
    positions = torch.arange(5).expand(2, 5)
    k = DenseCache(capacity=8).append(positions, stream(positions))[1].transpose(1, 2)
    assert k.stride(0) == k.shape[1] * k.stride(1) and k.stride(3) == 1 and k.flatten(0, 1).data_ptr() == k.data_ptr()


def test_pages_are_taken_as_needed_and_given_back():
    pool = PagePool(num_pages=6, page_size=4)
    cache = PagedCache(pool, batch=2)
    positions = torch.tensor([[0, 1, 2, 3, 4], [-1, -1, -1, 0, 1]])
    k_pos, _ = cache.append(positions, stream(positions))
    assert [len(table) for table in cache.tables] == [2, 1] and len(pool.free) == 3
    assert k_pos.tolist() == [[0, 1, 2, 3, 4], [0, 1, -1, -1, -1]]
    cache.crop(4)
    assert len(pool.free) == 4 and cache.lengths == [4, 2]
    cache.crop(0)
    assert len(pool.free) == 6 and cache.length == 0


def test_a_pool_that_is_used_up_says_so():
    positions = torch.arange(9)[None]
    with pytest.raises(ValueError, match="all 2 pages of 4 tokens are in use"):
        PagedCache(PagePool(2, 4), batch=1).append(positions, stream(positions))


@pytest.mark.parametrize("kind", ["dense", "paged"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_ragged_prompts_match_each_prompt_alone(kind, side):
    """Two prompts of 6 and 3 tokens in one batch, padded, then four decode steps."""
    model, x = build(small(GQA)), tokens(2, 10)
    pad = torch.full((3,), -1)
    short = torch.cat([pad, torch.arange(3)] if side == "left" else [torch.arange(3), pad])
    prompt = torch.stack([x[0, :6], x[1, :6]])
    prompt[1, short >= 0] = x[1, :3]
    caches = [DenseCache() if kind == "dense" else c for c in [PagedCache(PagePool(32, 4), 2) for _ in model.blocks]]
    with torch.no_grad():
        pieces = [model(prompt, torch.stack([torch.arange(6), short]), caches)]
        for i in range(4):
            pieces.append(model(torch.stack([x[0, 6 + i : 7 + i], x[1, 3 + i : 4 + i]]), caches=caches))
        alone = [model(x[:1]), model(x[1:, :7])]
    got = torch.cat(pieces, 1)
    torch.testing.assert_close(got[:1], alone[0], rtol=1e-4, atol=1e-5)
    real = torch.cat([short >= 0, torch.ones(4, dtype=torch.bool)])
    torch.testing.assert_close(got[1:, real], alone[1], rtol=1e-4, atol=1e-5)
    assert got.isfinite().all()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_per_token_are_the_formula(kv_heads, dtype):
    """2 (keys and values) x layers x kv heads x d_head x bytes; x tokens x batch for the whole cache."""
    config = ModelConfig(50, 64, 5, (BlockConfig(AttentionConfig(8, kv_heads, 16), MLPConfig(8)),))
    with torch.device("meta"):
        model = Transformer(config)
        model.compute_dtype = dtype
        caches = [CountingCache() for _ in model.blocks]
        model(torch.zeros(3, 7, dtype=torch.long), caches=caches)
    counted = sum(cache.bytes_per_token for cache in caches)
    assert counted == 2 * 5 * kv_heads * 16 * dtype.itemsize
    assert sum(cache.fixed_bytes for cache in caches) == 0


def test_bytes_of_a_real_cache_are_the_formula():
    model, x = build(small(GQA)), tokens(3, 8)
    caches = [DenseCache() for _ in model.blocks]
    with torch.no_grad():
        model(x, caches=caches)
    stored = sum(s.numel() * s.element_size() for cache in caches for s in cache._streams)
    assert stored == 2 * 2 * 2 * 4 * 4 * 8 * 3  # k and v, layers, kv heads, d_head, bytes, tokens, batch


def test_a_state_of_fixed_size_is_kept():
    for cache in (DenseCache(), PagedCache(PagePool(1), 1)):
        first, second = cache.state(torch.ones(1, 2), torch.ones(1, 3, 4))
        assert first.tolist() == [[0, 0]] and second.shape == (1, 3, 4) and cache.length == 0
        cache.keep(torch.tensor([[0, 1, 2]]), torch.full((1, 2), 3.0), second)
        cache.keep(torch.tensor([[3, -1, -1]]), torch.full((1, 2), 4.0), second)
        assert cache.state(first, second)[0].tolist() == [[4, 4]]
        assert cache.length == 6 and cache.next_positions().tolist() == [[4]]
    counting = CountingCache()
    counting.keep(torch.arange(5)[:, None], torch.zeros(5, 2, 3))
    assert counting.fixed_bytes == 24


@pytest.mark.parametrize("kind", ["dense", "paged"])
def test_a_cache_under_gradients_is_refused(kind):
    model = build(small(GQA))
    with pytest.raises(ValueError, match="torch.no_grad"):
        model(tokens(), caches=[made(kind) for _ in model.blocks])
