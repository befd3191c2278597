"""What must hold of every architecture, whatever fills its slots."""

from itertools import product

import pytest
import torch
from safetensors.torch import load, save

from groundup.config import from_dict, to_dict
from groundup.model import PLACEMENTS, DenseCache, ModelConfig, PagedCache, PagePool, Transformer

from .variants import ENCODERS, EVERY_PAIR, EVERY_VARIANT, FFNS, KINDS, MIXERS, NORMS, VARIANTS, build, tokens

variants = pytest.mark.parametrize("name", VARIANTS)


def caches_of(model, kind, batch=2):
    if kind == "dense":
        return [DenseCache() for _ in model.blocks]
    pool = PagePool(num_pages=64, page_size=4)
    return [PagedCache(pool, batch) for _ in model.blocks]


def check_cached_equals_uncached(config, kind):
    """Prefill 4, a chunk of 2 more, then three tokens one by one."""
    model, x = build(config), tokens()
    with torch.no_grad():
        whole, caches = model(x), caches_of(model, kind)
        pieces = [model(piece, caches=caches) for piece in x.split([4, 2, 1, 1, 1], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=2e-5)


def check_causal(config):
    model, x = build(config), tokens()
    changed = x.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % config.vocab_size
    with torch.no_grad():
        before, after = model(x), model(changed)
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(after[:, 5:], before[:, 5:])


def check_segments_isolate(config):
    """Two documents in one row give what each gives alone."""
    model, x = build(config), tokens()
    segments = torch.tensor([0] * 5 + [1] * 4).expand(2, -1)
    positions = torch.cat([torch.arange(5), torch.arange(4)]).expand(2, -1)
    with torch.no_grad():
        packed = model(x, positions, segments=segments)
        alone = torch.cat([model(x[:, :5]), model(x[:, 5:])], 1)
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)


def check_saved_equals_loaded(config):
    model, x = build(config), tokens()
    loaded = Transformer(from_dict(ModelConfig, to_dict(config))).eval()
    loaded.load_state_dict(load(save(model.state_dict())), strict=True)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


@variants
@pytest.mark.parametrize("kind", ["dense", "paged"])
def test_cached_equals_uncached(name, kind):
    check_cached_equals_uncached(VARIANTS[name], kind)


@variants
def test_a_future_token_changes_nothing_before_it(name):
    check_causal(VARIANTS[name])


@variants
def test_segments_isolate_documents(name):
    check_segments_isolate(VARIANTS[name])


@variants
def test_saved_equals_loaded(name):
    check_saved_equals_loaded(VARIANTS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY_PAIR)
def test_every_pair_of_slots(name):
    config = EVERY_PAIR[name]
    check_cached_equals_uncached(config, "dense")
    check_cached_equals_uncached(config, "paged")
    check_causal(config)
    check_segments_isolate(config)
    check_saved_equals_loaded(config)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_looks_ahead_within_its_document_and_survives_saving(name):
    config = ENCODERS[name]
    model, x = build(config), tokens()
    changed = x.clone()
    changed[:, -1] = (changed[:, -1] + 1) % config.vocab_size
    with torch.no_grad():
        assert not torch.allclose(model(changed)[:, -3:-1], model(x)[:, -3:-1])
    check_segments_isolate(config)
    check_saved_equals_loaded(config)


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_around_an_encoders_text_changes_nothing(name):
    model, x = build(ENCODERS[name]), tokens()
    padded = torch.cat([x[:, :2], x, x[:, :1]], 1)
    positions = torch.tensor([-1, -1, *range(9), -1]).expand(2, -1)
    with torch.no_grad():
        torch.testing.assert_close(model(padded, positions)[:, 2:-1], model(x), rtol=1e-4, atol=1e-5)


def parts_of(variants):
    return [name.split("-") for name in variants if name.count("-") == 3]


def test_the_fast_selection_meets_what_it_promises():
    for part, known in ((0, MIXERS), (1, FFNS)):
        met = {(p[part], p[2], p[3]) for p in parts_of(VARIANTS)}
        assert met == set(product(known, NORMS, PLACEMENTS))


def test_the_full_product_is_one():
    assert {(m, f, p) for m, f, _, p in parts_of(EVERY_VARIANT)} == set(product(MIXERS, KINDS, PLACEMENTS))


@pytest.mark.parametrize("slots", [(0, 1), (0, 3), (1, 3), (0, 2), (1, 2), (2, 3)])
def test_a_part_of_it_meets_every_pair(slots):
    known = {0: MIXERS, 1: KINDS, 2: NORMS, 3: PLACEMENTS}
    met = {tuple(parts[slot] for slot in slots) for parts in parts_of(EVERY_PAIR)}
    assert met == set(product(*(known[slot] for slot in slots)))
