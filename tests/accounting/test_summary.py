"""The printed summary quotes the ledger, it does not compute its own figures."""

from groundup import presets
from groundup.accounting import beside_six_nd, count_parameters, forward_flops, summary


def test_summary_quotes_the_ledger():
    config = presets.llama(d_model=32, num_layers=2, num_heads=2, vocab_size=100, context_length=16)
    text = summary(config)
    assert f"{count_parameters(config).total:,}" in text
    assert f"{forward_flops(config, 16):,}" in text
    assert "% of forward FLOPs" in text
    terms = beside_six_nd(config, 16)
    assert all(f"{n:,}" in text for n in (*terms.values(), sum(terms.values())))
