"""A whole history in seconds: its rungs, its folder, its resumption, and what it says of the order."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from groundup.accounting import count_parameters
from groundup.model import LSTMConfig, MLPConfig, NeuralNgramConfig
from groundup.model.ngram import KneserNey
from groundup.scaling import (
    RUNGS,
    AblationSettings,
    HistorySettings,
    history,
    is_history,
    match_parameters,
    neural_rungs,
    resume_history,
)
from groundup.scaling import ablation as room
from groundup.scaling.counted import Texts
from groundup.scaling.history import ordering
from groundup.scaling.rungs import neural_ngram, stacked_lstm

TINY = AblationSettings(
    d_model=32, num_layers=1, num_heads=2, context_length=16, batch_size=2, vocab_size=270, steps=4, seeds=2,
    tune_share=0.0, text_bytes=150_000, scored_bytes=1_500, match="parameters",
)  # fmt: skip
ORDER = HistorySettings(order=3, guesses=300, longest_block=4, masked=40)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder, result)."""
    folder = tmp_path_factory.mktemp("history") / "run"
    return folder, history([], ORDER, TINY, out=folder, device="cpu")


def test_all_trained_rungs_have_as_many_parameters():
    for settings in (TINY, AblationSettings()):
        rungs = {variant.name: variant.config for variant in neural_rungs(settings, 5)}
        counts = {name: count_parameters(config).total for name, config in rungs.items()}
        assert list(rungs) == ["gpt", "neural_ngram", "lstm", "gpt2017"]
        assert all(abs(count - counts["gpt"]) <= 0.01 * counts["gpt"] for count in counts.values())
        assert isinstance(rungs["neural_ngram"].blocks[0].mixer, NeuralNgramConfig)
        assert isinstance(rungs["lstm"].blocks[0].mixer, LSTMConfig)
        old = rungs["gpt2017"].blocks[0]
        assert (old.placement, old.norm) == ("post", "layer")
        assert isinstance(old.ffn, MLPConfig) and not old.ffn.gated


def test_widths_by_hand():
    """Tables 2 x 270 x 32. The neural n-gram of order 3 has 64 h + h + 32 h more, so 16 units make 1,552."""
    made = match_parameters(neural_ngram(TINY, 3), 17_280 + 97 * 16, tolerance=1e-9)
    assert made.blocks[0].mixer == NeuralNgramConfig(3, 16)
    # An LSTM layer: 4 h (32 + 1 + h) and 32 h back, with a LayerNorm of 64; at h = 10: 1720 + 320 + 64.
    layers = stacked_lstm(TINY)
    made = match_parameters(layers, 17_280 + 2 * 2104 + 64, tolerance=1e-9)
    assert made.blocks[0].mixer == LSTMConfig(10)


def test_a_rung_that_cannot_be_as_large_is_named():
    with pytest.raises(ValueError, match="rung 'lstm'.*change d_model"):
        neural_rungs(replace(TINY, d_model=2, num_heads=1, num_layers=1), 2)


def test_every_rung_is_scored_on_the_same_text(finished):
    folder, result = finished
    assert [row["name"] for row in result["rungs"]] == [rung.name for rung in RUNGS]
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["settings"]["budget_seconds"] == TINY.budget_seconds  # of which the trained rungs had three quarters
    texts = Texts.load(folder / "neural")
    assert texts.num_bytes == sum(len(text.encode()) for text in texts.held_out) <= 1_500
    for row in result["rungs"]:
        assert len(row["bits_per_byte"]) == (1 if row["counted"] else 2)
        assert all(1 < bits < 9 for bits in row["bits_per_byte"])
        assert row["tokens"] == (texts.num_tokens if row["counted"] else 4 * 32)
        if not row["counted"]:
            assert row["low"] < row["mean"] < row["high"] and row["flops"] > 0


def test_the_counted_rung_is_kneser_ney_itself(finished):
    folder, result = finished
    texts = Texts.load(folder / "neural")
    model = KneserNey(3, vocab_size=270).fit(texts.training)
    bits = -sum(model.log2_probs(ids).sum() for ids in texts.scored()) / texts.num_bytes
    assert result["rungs"][1]["mean"] == result["orders"][2]["bits_per_byte"] == pytest.approx(bits, rel=1e-12)
    assert [row["order"] for row in result["orders"]] == [1, 2, 3]
    assert texts.training_texts()[0].strip()


def test_differences_from_a_counted_rung_are_those_from_its_one_score(finished):
    _, result = finished
    rows = {row["name"]: row for row in result["rungs"]}
    found = next(c for c in result["comparisons"] if (c["variant"], c["against"]) == ("lstm", "ngram"))
    assert found["differences"] == [bits - rows["ngram"]["mean"] for bits in rows["lstm"]["bits_per_byte"]]
    assert any("7 comparisons" in note for note in result["notes"])
    assert not any("3 comparisons" in note for note in result["notes"])


def test_the_entropy_of_english_is_beside_it(finished):
    folder, result = finished
    lab = result["entropy"]
    assert json.loads((folder / "entropy.json").read_text()) == lab
    assert lab["guesses"] == 300 and [row["n"] for row in lab["rows"]] == [1, 2, 3, 4]
    assert lab["letters"] > 50_000 > lab["held_out_letters"] > 1_000
    assert lab["gpt"]["steps"] == 4 and lab["gpt"]["letters_seen"] == 4 * 32
    first, *_, last = lab["rows"]
    assert 4.0 < first["plug_in"] < 4.2 and 4.0 < first["scored"] < 4.2  # Shannon: 4.03
    assert last["plug_in_held_out"] < last["plug_in"] < last["scored"] < first["scored"]


def test_what_cannot_be_ranked_is_kept_apart(finished):
    folder, result = finished
    assert [row["name"] for row in result["beside"]] == ["gpt, same part", "encdec", "mlm"]
    assert json.loads((folder / "beside.json").read_text()) == result["beside"]
    assert not {"encdec", "mlm"} & {*result["ordering"]["seen"], *(row["name"] for row in result["rungs"])}
    assert result["beside"][2]["scored_tokens"] == 40


def test_four_steps_are_no_match_for_counting_and_that_is_said(finished):
    _, result = finished
    assert result["ordering"]["seen"][-1] == "ngram" and not result["ordering"]["reproduced"]


@pytest.mark.parametrize(
    ("means", "reproduced"),
    [
        ({"ngram": 2.0, "lstm": 1.8, "gpt": 1.6, "unigram": 3.0}, True),
        ({"ngram": 1.7, "lstm": 1.8, "gpt": 1.6}, False),
        ({"ngram": 2.0, "lstm": None, "gpt": 1.6}, False),
    ],
)
def test_the_order_is_that_of_the_means(means, reproduced):
    found = ordering(means)
    assert found["reproduced"] is reproduced
    assert found["seen"] == sorted((n for n in means if means[n]), key=lambda n: -means[n])


@pytest.mark.slow
def test_an_interrupted_history_goes_on_with_what_it_has(tmp_path, monkeypatch, finished):
    made, train_once = [], room.train_once

    def stop_at_the_third(*arguments, **options):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(train_once(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(room, "train_once", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        history([], ORDER, TINY, out=tmp_path / "run", device="cpu")
    assert is_history(tmp_path / "run") and not (tmp_path / "run" / "result.json").exists()
    monkeypatch.setattr(room, "train_once", train_once)
    result = resume_history(tmp_path / "run", device="cpu")
    scores = {row["name"]: row["bits_per_byte"] for row in result["rungs"]}
    assert scores["gpt"][0] == made[0]["bits_per_byte"]
    assert scores == {row["name"]: row["bits_per_byte"] for row in finished[1]["rungs"]}


def test_what_is_refused(tmp_path, finished):
    with pytest.raises(ValueError, match="order=1: must be from 2"):
        HistorySettings(order=1)
    with pytest.raises(ValueError, match="already holds something.*--resume"):
        history([], ORDER, TINY, out=finished[0], device="cpu")
    with pytest.raises(ValueError, match="no history's config.json"):
        resume_history(tmp_path)
    with pytest.raises(ValueError, match="no history's config.json"):
        resume_history(Path(finished[0]) / "neural")


def test_a_beginning_that_failed_leaves_nothing_to_go_on_with(tmp_path):
    """A wrong name of a file, corrected, may have the same folder; one that cannot be gone on with is not offered."""
    out = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match="no such file"):
        history([str(tmp_path / "absent.txt")], ORDER, TINY, out=out, device="cpu")
    assert not is_history(out) and not list(out.iterdir())
    (out / "config.json").write_text('{"history": {}}')
    with pytest.raises(ValueError, match="already holds something; choose another$"):
        history([], ORDER, TINY, out=out, device="cpu")


def test_longer_contexts_are_refused_as_no_table_would_show_them():
    with pytest.raises(ValueError, match=r"lengths=\[1, 2\]: a history scores no longer contexts"):
        neural_rungs(replace(TINY, lengths=(1, 2)), 3)
