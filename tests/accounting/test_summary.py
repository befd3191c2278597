"""The printed summary quotes the ledger, it does not compute its own figures."""

from groundup import presets
from groundup.accounting import beside_six_nd, count_parameters, forward_flops, summary
from groundup.model import AttentionConfig, BlockConfig, LSTMConfig, MLPConfig, ModelConfig, MoEConfig


def test_summary_quotes_the_ledger():
    config = presets.llama(d_model=32, num_layers=2, num_heads=2, vocab_size=100, context_length=16)
    text = summary(config)
    assert f"{count_parameters(config).total:,}" in text
    assert f"{forward_flops(config, 16):,}" in text
    assert "% of forward FLOPs" in text
    terms = beside_six_nd(config, 16)
    assert all(f"{n:,}" in text for n in (*terms.values(), sum(terms.values())))


def test_experts_and_states_have_their_lines():
    blocks = (
        BlockConfig(LSTMConfig(12), MoEConfig(8, 2, 16)),
        BlockConfig(AttentionConfig(2, 2, 8), MLPConfig(16)),
    )
    text = summary(ModelConfig(100, 32, 2, blocks), context_length=8)
    idle = 6 * 3 * 32 * 16
    count = count_parameters(ModelConfig(100, 32, 2, blocks))
    assert count.total - count.active == idle and f"{count.active:,}  that a token meets" in text
    assert "states" in text and f"{2 * 12 * 4:,}  bytes per sequence" in text
    plain = summary(presets.llama(d_model=32, num_layers=2, num_heads=2, vocab_size=100, context_length=16))
    assert "active" not in plain and "states" not in plain
