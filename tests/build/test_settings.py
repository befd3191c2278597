"""Settings come from words on the command line; every mistake has an answer."""

import pytest

from groundup.build.settings import BuildSettings, settings_from


def test_settings_from_words():
    assert settings_from("2m", 7, ["d_model=64"]) == BuildSettings(budget_seconds=120, seed=7, d_model=64)


@pytest.mark.parametrize(("budget", "seed", "word"), [("2m", None, "budget_seconds=60"), (None, 1, "seed=2")])
def test_a_setting_that_is_given_twice_is_refused(budget, seed, word):
    with pytest.raises(ValueError, match="are the same setting"):
        settings_from(budget, seed, [word])


BAD = ["dropout=1", "dropout=-0.1", "dropout=NaN", "z_loss=-1", "z_loss=1", "z_loss=NaN",
       "held_out_fraction=0", "held_out_fraction=0.6", "max_epochs=0", "max_epochs=NaN", "max_epochs=Infinity",
       "learning_rate=2", "learning_rate=NaN", "batch_size=-1", "vocab_size=x", "vocab_size=259", "threads=100000",
       "seed=-1", "seed=9223372036854775808", "budget_seconds=NaN", "budget_seconds=Infinity"]  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_values_out_of_range(bad):
    with pytest.raises(ValueError, match=bad.split("=")[0]):
        settings_from(None, None, [bad])


@pytest.mark.parametrize("word", ["num_layers=5000", "d_model=1000000", "threads=100000", "vocab_size=10000000"])
def test_sizes_that_cannot_even_be_planned_are_refused(word):
    with pytest.raises(ValueError, match="must be at most"):
        settings_from(None, None, [word])


def test_words_for_yes_and_no():
    settings = settings_from(None, None, ["compile=no", "chat=off", "deterministic=yes", "track=wandb,tensorboard"])
    assert settings == BuildSettings(compile=False, chat=False, deterministic=True, track=("wandb", "tensorboard"))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("d_modl=64", r"unknown setting 'd_modl'; did you mean 'd_model'\? \(groundup build --help lists all\)"),
        ("d-model=64", "unknown setting 'd-model'; did you mean 'd_model'"),
        ("zzzz=64", r"unknown setting 'zzzz' \(groundup build --help lists all\)"),
        ("kind=x", "unknown setting 'kind'"),
        ("compile=perhaps", "^compile: expected true or false, not 'perhaps'"),
        ("threads=many", "^threads: expected a whole number, not 'many'"),
        ("precision=fp17", "^precision: expected one of 'auto', 'fp32', 'bf16', 'int8', not 'fp17'"),
        ("precision=mxfp8", r"^precision=mxfp8: a build is planned with rates .* train.precision.apply"),
    ],
)
def test_mistakes_are_said_in_words(word, message):
    with pytest.raises(ValueError, match=message):
        settings_from(None, None, [word])
