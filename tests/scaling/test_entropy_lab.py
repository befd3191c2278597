"""The entropy lab on a text whose entropy is known, and the letters that its gpt predicts."""

import itertools

import numpy as np
import pytest
import torch

from groundup.evaluation.entropy import ALPHABET
from groundup.scaling import AblationSettings, HistorySettings, modern
from groundup.scaling.entropy_lab import entropy_lab, joined_letters, letter_batches, next_letter
from groundup.scaling.one_run import make_model

CPU = torch.device("cpu")
TRAINING = AblationSettings(
    d_model=16, num_layers=1, num_heads=2, context_length=16, batch_size=8, vocab_size=270, seeds=2
)  # fmt: skip
CHAIN = {"a": (0.8, 0.15, 0.05), "b": (0.1, 0.6, 0.3), "c": (0.25, 0.25, 0.5)}
MATRIX = np.array(list(CHAIN.values()))
STATIONARY = np.linalg.matrix_power(MATRIX, 200)[0]
RATE = float(-(STATIONARY[:, None] * MATRIX * np.log2(MATRIX)).sum())


def chain(length, seed):
    rng, text = np.random.default_rng(seed), ["a"]
    for x in rng.random(length):
        text.append("abc"[int(np.searchsorted(np.cumsum(CHAIN[text[-1]]), x))])
    return "".join(text)


@pytest.fixture(scope="module")
def lab():
    settings = HistorySettings(guesses=1500, longest_block=6)
    made = entropy_lab(
        [chain(30_000, 0)], [chain(1_500, 1)], settings, TRAINING, rate=0.01, steps=60, device=CPU
    )  # fmt: skip
    assert made is not None
    return made


def test_letters_of_several_texts():
    assert "".join(ALPHABET[i] for i in joined_letters(["It's", "12", "me!"])) == "it s me"
    assert len(joined_letters(["12", ""])) == 0


def test_counting_finds_the_rate_of_a_chain(lab):
    one, two, *_, six = lab["rows"]
    assert one["plug_in"] > RATE + 0.1 and one["scored"] > RATE + 0.1
    assert two["plug_in"] == pytest.approx(RATE, abs=0.02) and two["scored"] == pytest.approx(RATE, abs=0.06)
    assert six["plug_in_held_out"] < RATE - 0.1 < six["scored"]  # few letters look too certain to themselves


def test_the_bounds_hold_the_rate(lab):
    for row in [lab["rows"][1], lab["gpt"]]:
        assert row["lower"] < RATE < row["upper"]
    assert lab["rows"][0]["lower"] > RATE  # one that sees no letter before is far from ideal


def test_the_gpt_learns_the_chain(lab):
    assert lab["gpt"]["scored"] < lab["rows"][0]["scored"] and lab["gpt"]["scored"] > RATE - 0.06
    assert lab["gpt"]["letters_seen"] == 60 * 8 * 16


def test_scores_are_of_all_held_out_letters_however_few_are_guessed(lab):
    few = entropy_lab(
        [chain(30_000, 0)], [chain(1_500, 1)], HistorySettings(guesses=100, longest_block=1), TRAINING, rate=0.01,
        steps=60, device=CPU,
    )  # fmt: skip
    assert few is not None and few["guesses"] == 100
    assert few["gpt"]["scored"] == pytest.approx(lab["gpt"]["scored"], rel=1e-9)
    assert few["rows"][0]["scored"] == lab["rows"][0]["scored"]
    assert few["gpt"]["upper"] != lab["gpt"]["upper"]


def test_each_letter_is_predicted_from_those_before_it_alone():
    model = make_model(modern(TRAINING), TRAINING, 0, CPU)
    symbols = np.random.default_rng(0).integers(0, 27, 40)
    p = next_letter(model, symbols)
    assert p.shape == (40, 270)
    spaced = np.append(0, symbols)
    with torch.no_grad():
        for i in range(40):
            # Windows of 16 advance by 8: between 8 and 15 letters before the newest, where there are so many.
            start = 0 if i < 8 else 8 * (i // 8) - 8
            logits = model(torch.from_numpy(spaced[start : i + 1])[None])[0, -1]
            np.testing.assert_allclose(p[i], logits.double().softmax(-1).numpy(), rtol=1e-4, atol=1e-7)


def test_batches_are_windows_of_the_text():
    past = np.arange(50)
    for batch in itertools.islice(letter_batches(past, TRAINING, CPU), 5):
        assert batch["tokens"].shape == (8, 17)
        assert (batch["tokens"].diff(dim=1) == 1).all()


def test_a_text_without_letters_has_no_such_part():
    assert entropy_lab(["12" * 500], ["34" * 500], HistorySettings(), TRAINING, rate=0.01, steps=1, device=CPU) is None
