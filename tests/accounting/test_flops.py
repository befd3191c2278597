"""The ledger against hand counts, against torch's own counter, and against a published figure."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from groundup import presets
from groundup.accounting import (
    beside_six_nd,
    forward_flops,
    ledger,
    optimizer_ledger,
    training_flops_per_token,
    training_ledger,
)
from groundup.accounting.flops import visible_pairs
from groundup.model import (
    PLACEMENTS,
    AttentionConfig,
    BlockConfig,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    MultiTokenConfig,
    ReinforceRouter,
    Transformer,
)
from groundup.optim import orthogonalize
from groundup.train import next_token
from groundup.train.objectives import multi_token
from tests.model.variants import ENCODERS, MIXERS, VARIANTS, small, tokens


def test_visible_pairs_equal_a_count_by_loops():
    for seq in (1, 2, 7, 16):
        for window in (None, 1, 3, 16, 40):
            counted = sum(1 for i in range(seq) for j in range(i + 1) if window is None or i - j < window)
            assert visible_pairs(seq, window) == counted
            both = sum(1 for i in range(seq) for j in range(seq) if window is None or abs(i - j) < window)
            assert visible_pairs(seq, window, causal=False) == both


def test_a_tiny_model_by_hand():
    config = presets.llama(
        d_model=8, num_layers=1, num_heads=2, num_kv_heads=1, d_ff=16, vocab_size=10, context_length=4
    )
    projections = 2 * 4 * 8 * (8 + 4 + 4 + 8)  # wq wk wv wo on four tokens
    attention = 2 * (4 * 5 // 2) * 8 * 2  # scores and values over ten visible pairs
    feedforward = 3 * 2 * 4 * 8 * 16
    head = 2 * 4 * 8 * 10
    assert forward_flops(config, seq=4) == projections + attention + feedforward + head


def test_gpt2_xl_shape_has_the_published_forward_flops():
    config = presets.llama(
        d_model=1600, num_layers=48, num_heads=25, num_kv_heads=25, d_ff=6400, vocab_size=50257, context_length=1024
    )
    per_layer = 2 * 1024 * (4 * 1600**2 + 3 * 1600 * 6400) + 4 * 1024**2 * 1600
    assert forward_flops(config, seq=1024, causal=False) == 48 * per_layer + 2 * 1024 * 1600 * 50257
    assert forward_flops(config, seq=1024, causal=False) == 4_513_336_524_800


@pytest.mark.parametrize("name", sorted(VARIANTS | ENCODERS))
def test_ledger_equals_torchs_counter(name):
    config = (VARIANTS | ENCODERS)[name]
    tokens = torch.randint(0, config.vocab_size, (2, 12))
    model = Transformer(config)
    model.compute_dtype = torch.float64  # attention as plain matmuls: the counter does not see the fused CPU kernel
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    assert forward_flops(config, seq=12, batch=2, causal=False) == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_an_encoder_without_a_window_uses_the_whole_square():
    encoder = ENCODERS["plain"]
    square = forward_flops(encoder, seq=12, causal=False)
    assert forward_flops(encoder, seq=12) == square
    decoder = replace(encoder, blocks=(replace(encoder.blocks[0], mixer=AttentionConfig(4, 2, 4)),))
    assert forward_flops(decoder, seq=12) == square - 2 * 2 * 2 * (12 * 11 // 2) * 16  # layers, products, a FMA


def test_training_is_three_forwards_and_recomputation_adds_the_blocks_without_their_last_product():
    config = presets.llama(d_model=32, num_layers=2, num_heads=2, vocab_size=64, context_length=16)
    forward = forward_flops(config, 16)
    assert training_flops_per_token(config, 16) * 16 == pytest.approx(3 * forward)
    once = sum(row.flops for row in ledger(config, 16) if row.name in ("head", "down"))
    assert training_flops_per_token(config, 16, recomputed_layers=2) * 16 == pytest.approx(4 * forward - once)


def test_six_nd_is_the_matmul_part():
    config = presets.llama(d_model=64, num_layers=3, num_heads=4, vocab_size=256, context_length=8, tie_embeddings=True)
    model = Transformer(config)
    matmul_parameters = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    matmuls = sum(row.flops for row in ledger(config, seq=8) if row.kind == "matmul")
    assert 3 * matmuls == 6 * matmul_parameters * 8


@pytest.mark.parametrize("placement", sorted(PLACEMENTS))
@pytest.mark.parametrize("recompute", [0, 1, 2])
def test_a_training_step_equals_torchs_counter(recompute, placement):
    """Backward and recomputation too, in a model whose two blocks cost differently."""
    sizes = ((4, 24), (1, 40))
    blocks = tuple(BlockConfig(AttentionConfig(4, n, 4), MLPConfig(d_ff), placement=placement) for n, d_ff in sizes)
    config = ModelConfig(vocab_size=50, d_model=16, num_layers=2, blocks=blocks)
    model = Transformer(config).double()
    model.compute_dtype, model.recompute = torch.float64, recompute
    batch = {"tokens": torch.randint(0, 50, (2, 13))}
    with FlopCounterMode(display=False) as counter:
        next_token(model, batch).total.backward()
    rows = training_ledger(config, seq=12, batch=2, causal=False, recomputed_layers=recompute, optimizer=None)
    assert sum(row.flops for row in rows if row.kind != "elementwise") == counter.get_total_flops()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_step_of_every_variant_equals_torchs_counter(name):
    model = Transformer(VARIANTS[name]).double()
    model.compute_dtype, model.recompute = torch.float64, True
    with FlopCounterMode(display=False) as counter:
        next_token(model, {"tokens": torch.randint(0, model.config.vocab_size, (2, 13))}).total.backward()
    rows = training_ledger(model.config, 12, 2, False, recomputed_layers=model.config.num_layers, optimizer=None)
    assert sum(row.flops for row in rows if row.kind != "elementwise") == counter.get_total_flops()


@pytest.mark.parametrize("baseline", ["none", "mean", "greedy"])
def test_a_step_with_sampled_choices_equals_torchs_counter(baseline):
    config = small(BlockConfig(AttentionConfig(4, 2, 4), MoEConfig(4, 1, 8, router=ReinforceRouter(baseline))))
    model = Transformer(config).double()
    model.compute_dtype = torch.float64
    with FlopCounterMode(display=False) as counter:
        next_token(model, {"tokens": torch.randint(0, config.vocab_size, (2, 13))}).total.backward()
    rows = training_ledger(config, seq=12, batch=2, causal=False, optimizer=None)
    assert sum(row.flops for row in rows if row.kind != "elementwise") == counter.get_total_flops()


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_a_step_with_multi_token_modules_equals_torchs_counter(name):
    ffn = MLPConfig(24) if name == "dense" else MoEConfig(4, 2, 8)
    config = replace(small(BlockConfig(AttentionConfig(4, 2, 4), ffn)), multi_token=MultiTokenConfig(depth=2))
    model = Transformer(config).double()
    model.compute_dtype = torch.float64
    with FlopCounterMode(display=False) as counter:
        multi_token(model, {"tokens": torch.randint(0, config.vocab_size, (2, 13))}).total.backward()
    rows = training_ledger(config, seq=12, batch=2, causal=False, optimizer=None)
    assert sum(row.flops for row in rows if row.kind != "elementwise") == counter.get_total_flops()
    assert forward_flops(config, 12) == forward_flops(replace(config, multi_token=None), 12)


@pytest.mark.parametrize("placement", ["pre", "sandwich"])
def test_a_recomputed_step_of_mixers_alone_equals_torchs_counter(placement):
    config = ModelConfig(50, 16, 2, (BlockConfig(AttentionConfig(4, 2, 4), None, placement=placement),))
    model = Transformer(config).double()
    model.compute_dtype, model.recompute = torch.float64, True
    with FlopCounterMode(display=False) as counter:
        next_token(model, {"tokens": torch.randint(0, 50, (2, 13))}).total.backward()
    rows = training_ledger(config, seq=12, batch=2, causal=False, recomputed_layers=2, optimizer=None)
    assert sum(row.flops for row in rows if row.kind != "elementwise") == counter.get_total_flops()
    per_block = [row.flops for row in rows if row.name == "residual" and row.phase == "forward"]
    assert per_block == [2 * 12 * 16] * 2


@pytest.mark.parametrize("mixer", ["mha", "gqa", "mqa"])
def test_decoding_with_a_cache_does_the_work_of_one_pass_over_the_text(mixer):
    """Token by token, each against the keys so far: the causal count, and no product a second time."""
    model, x = Transformer(small(BlockConfig(MIXERS[mixer], MLPConfig(24)))), tokens(2, 9)
    caches = model.new_caches()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for piece in x.split(1, 1):
            model(piece, caches=caches)
    assert counter.get_total_flops() == forward_flops(model.config, seq=9, batch=2, causal=True)


def test_more_layers_recomputed_than_there_are():
    config = presets.llama(d_model=32, num_layers=2, num_heads=2, vocab_size=64)
    with pytest.raises(ValueError, match="recomputed_layers=3; expected 0 to 2"):
        training_ledger(config, 8, recomputed_layers=3)


@pytest.mark.parametrize(
    ("placement", "norms"), [("pre", 2), ("post", 2), ("inner", 2), ("sandwich", 4), ("parallel", 1)]
)
def test_as_many_norms_as_the_placement_has(placement, norms):
    block = BlockConfig(AttentionConfig(2, 2, 4), MLPConfig(16), placement=placement)
    rows = ledger(ModelConfig(10, 8, 1, (block,)), seq=5)
    assert next(row.flops for row in rows if row.name == "norm") == norms * 4 * 5 * 8


def test_what_only_some_models_compute_has_its_row():
    def names(**options):
        block = BlockConfig(AttentionConfig(2, 1, 4, **options), MLPConfig(16))
        return {row.name: row.flops for row in ledger(ModelConfig(10, 8, 1, (block,)), seq=3)}

    assert names(qk_norm=True)["qk_norm"] == 4 * 3 * (8 + 4)
    assert names(softcap=5.0)["softcap"] == 3 * 6 * 2
    assert not {"qk_norm", "softcap"} & names().keys()


def test_an_update_by_hand():
    config = presets.llama(d_model=8, num_layers=1, num_heads=2, d_ff=16, vocab_size=10)
    count = sum(p.numel() for p in Transformer(config).parameters())
    assert [row.flops for row in optimizer_ledger(config)] == [14 * count]
    matrices = 4 * 8 * 8 + 3 * 8 * 16
    orthogonalized = 5 * (4 * (4 * 8**3 + 2 * 8**3) + 3 * (4 * 8 * 8 * 16 + 2 * 8**3))
    rows = {row.name: row.flops for row in optimizer_ledger(config, "muon_adamw")}
    assert rows == {"adamw": 14 * (count - matrices), "muon": 11 * matrices, "orthogonalize": orthogonalized}


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_optimizer_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'adamw'"):
        optimizer_ledger(presets.llama(d_model=64, vocab_size=64), "adam")  # pyright: ignore[reportArgumentType]


def test_muons_products_equal_torchs_counter():
    config = presets.llama(d_model=8, num_layers=2, num_heads=2, d_ff=16, vocab_size=10)
    matrices = [p for name, p in Transformer(config).named_parameters() if "blocks" in name and p.ndim == 2]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for p in matrices:
            orthogonalize(p)
    counted = next(row.flops for row in optimizer_ledger(config, "muon_adamw") if row.name == "orthogonalize")
    assert counted == counter.get_total_flops()


@pytest.mark.parametrize("tied", [False, True])
def test_six_nd_and_all_that_it_leaves_out_are_the_whole_step(tied):
    config = presets.llama(d_model=64, num_layers=3, num_heads=4, vocab_size=256, tie_embeddings=tied)
    terms = beside_six_nd(config, 32, 2, recomputed_layers=1, optimizer="muon_adamw")
    rows = training_ledger(config, 32, 2, recomputed_layers=1, optimizer="muon_adamw")
    assert sum(terms.values()) == sum(row.flops for row in rows)
    lookups = sum(p.numel() for name, p in Transformer(config).named_parameters() if "norm" in name)
    lookups += 0 if tied else 256 * 64
    assert terms["parameters outside of matmuls"] == -6 * lookups * 64
    assert terms["attention"] == 3 * 3 * 2 * (2 * 2 * (32 * 33 // 2) * 64)
