"""What the decisions save: both sides of every pair agree, what is counted is right, every decision has its rows."""

import json
from dataclasses import replace

import pytest
import torch

from groundup import cli, cli_why, presets
from groundup.accounting import forward_flops
from groundup.bench import why as room
from groundup.bench.decisions import Sizes, as_multi_head, grouped_queries, pairs, with_window
from groundup.bench.measure import Rates
from groundup.bench.why import Saving, one_epoch, relative_spread, why
from groundup.model import Transformer

SMALL = Sizes(
    d_model=32, num_layers=1, vocab_size=300, batch=2, context=16, long_context=48, window=8, num_heads=4,
    num_kv_heads=2, text_bytes=20_000, chunk=8, compiled=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def found():
    return why(0.0, SMALL)


def test_both_sides_of_every_pair_agree(tmp_path):
    ready = list(pairs(SMALL, str(tmp_path)))
    assert [pair.decision for pair in ready] == [
        "byte-pair encoding", "grouped-query attention", "sliding window", "sliding window", "bfloat16",
        "fused head and loss",
    ]  # fmt: skip
    assert all(pair.agree() for pair in ready)


@pytest.mark.slow
def test_the_compiled_norm_agrees_with_the_plain_one(tmp_path, unchecked):
    pair = list(pairs(replace(SMALL, compiled=True), str(tmp_path)))[-1]
    assert pair.decision == "fused RMSNorm" and pair.agree()


def test_a_multi_head_model_can_compute_what_a_grouped_one_does():
    grouped = Transformer(presets.llama(vocab_size=50, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2))
    multi, tokens = as_multi_head(grouped), torch.randint(50, (2, 9))
    assert multi.blocks[0].mixer.wk.weight.shape == (32, 32) and grouped.blocks[0].mixer.wk.weight.shape == (16, 32)
    assert torch.allclose(multi(tokens), grouped(tokens), atol=1e-5)
    # Heads 0 and 1 share the first key head: shuffled, the outputs differ.
    with torch.no_grad():
        multi.blocks[0].mixer.wk.weight.copy_(multi.blocks[0].mixer.wk.weight.roll(16, 0))
    assert not torch.allclose(multi(tokens), grouped(tokens), atol=1e-3)


def test_a_window_changes_outputs_beyond_it_and_none_within():
    whole = Transformer(presets.llama(vocab_size=50, d_model=32, num_layers=1, num_heads=2))
    near, tokens = with_window(whole, 5), torch.randint(50, (1, 12))
    assert torch.allclose(whole(tokens)[:, :5], near(tokens)[:, :5], atol=1e-5)
    assert not torch.allclose(whole(tokens)[:, 5:], near(tokens)[:, 5:], atol=1e-3)


def test_decoding_again_starts_from_the_same_cache():
    pair = grouped_queries(SMALL)
    assert torch.equal(pair.run_before(), pair.run_before())


def test_what_is_counted(found):
    rows = {(row.decision, row.quantity): row for row in found.rows}
    assert rows["grouped-query attention", "cache bytes per token"].before == 2 * 4 * 8 * 4
    assert rows["grouped-query attention", "cache bytes per token"].factor == 2
    held = rows["sliding window", "cache bytes that a token reads, per row"]
    assert (held.before, held.after) == (48 * 2 * 32 * 4, 8 * 2 * 32 * 4)
    seen = rows["sliding window", "attention FLOPs per layer"]
    assert seen.before == 4 * 32 * (48 * 49 // 2) and seen.after == 4 * 32 * (8 * 9 // 2 + 40 * 8)
    logits = rows["fused head and loss", "bytes of logits"]
    assert (logits.before, logits.after) == (4 * 32 * 300, 4 * 8 * 300)
    tokens = rows["byte-pair encoding", "tokens per byte"]
    assert tokens.before == 1 and 0.3 < tokens.after < 1
    flops = rows["byte-pair encoding", "training FLOPs per byte"]
    config = presets.llama(vocab_size=256, d_model=32, num_layers=1, num_heads=4, context_length=16)
    assert flops.before == pytest.approx(3 * forward_flops(config, 16) / 16)
    larger = 3 * 2 * 32 * (300 - 256)  # the head of the larger vocabulary, per token
    assert flops.after == pytest.approx((flops.before + larger) * tokens.after)


def test_every_decision_has_a_measured_row_and_the_recorded_one_says_so(found):
    measured = [row for row in found.rows if row.how == "measured"]
    assert len(measured) == 6 and all(row.before > 0 and row.after > 0 and row.runs >= 3 for row in measured)
    assert {row.unit for row in measured} == {"s"}
    assert [row.decision for row in found.rows if row.how == "recorded"] == ["one epoch"]
    assert any("Filtering has no row" in note for note in found.notes)


def test_ten_passes_are_worth_less_than_ten():
    row = one_epoch()
    assert row.before == 10 and 7 < row.after < 9 and row.factor == row.before / row.after


def test_factor_and_spread_by_hand():
    assert Saving("d", "a / b", "q", 6.0, 2.0, "s", "measured").factor == 3
    assert relative_spread([1.0, 2.0, 3.0, 4.0, 5.0]) == 1 / 3
    assert relative_spread([7.0]) == 0 and Rates((7.0,)).spread == 0


def test_sides_that_disagree_are_an_error_and_what_does_not_run_is_left_out(monkeypatch, tmp_path):
    pair = grouped_queries(SMALL)
    notes = []
    with pytest.raises(ValueError, match="4 key heads and 2 key heads, the same outputs give different results"):
        room._checked(replace(pair, agree=lambda: False), notes, lambda line: None)

    def fails():
        raise OSError("no compiler\nat all")

    assert room._checked(replace(pair, agree=fails), notes, lambda line: None) is False
    assert notes == ["grouped-query attention has no row, as it does not run here: no compiler"]


def test_the_command_prints_rows_and_notes(monkeypatch, capsys, found, tmp_path):
    monkeypatch.setattr(room, "why", lambda seconds, say: found)
    assert cli.main(["report", "--why", "--seconds", "0", "--json"]) == 0
    out = capsys.readouterr().out
    assert "grouped-query attention" in out and "recorded" in out and "Filtering has no row" in out
    said = json.loads(out.splitlines()[-1])
    assert said["rows"][0]["factor"] == found.rows[0].factor and said["threads"] == 1
    page = tmp_path / "why.html"
    assert cli.main(["report", "--why", "--html", str(page)]) == 0 and f"wrote {page}" in capsys.readouterr().out
    assert "times less (logarithmic)" in page.read_text()
    assert cli.main(["report", "--why", "--html", str(tmp_path / "no" / "x.html")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert cli_why.amount(1234.0, "", 0) == "1,234" and cli_why.amount(2e-5, "s", 0.5) == "20 us +- 50%"


@pytest.mark.parametrize(("words", "message"), [
    (["runs/a", "--why"], "reads no run: leave out runs/a"),
    (["runs/a", "--seconds", "3"], "--seconds, --html and --json belong to --why"),
    (["--why", "--seconds", "-1"], "--seconds -1: expected 0 or more"),
])  # fmt: skip
def test_mistakes_are_answered_in_words(capsys, words, message):
    assert cli.main(["report", *words]) == 1 and message in capsys.readouterr().err


def test_too_little_text_is_said(tmp_path):
    with pytest.raises(ValueError, match="do not fill 2 rows of 17"):
        list(pairs(replace(SMALL, text_bytes=20, vocab_size=260), str(tmp_path)))
