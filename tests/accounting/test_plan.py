"""The planner: more time and text help, wishes are granted, limits are kept."""

import math
from dataclasses import replace

import pytest

from groundup.accounting.hardware import Machine
from groundup.accounting.law import BUILD_LAW
from groundup.accounting.plan import (
    FRESH_EPOCHS,
    TextFacts,
    Wishes,
    at_speed,
    describe,
    dropout_for,
    efficiency,
    fit_to_time,
    guess_bytes_per_token,
    model_config,
    plan,
    vocabulary_for,
    with_bytes_per_token,
    worthwhile_epochs,
)

CPU = Machine("cpu", "two cores", 2, "bf16", {"bf16 x2": 860e9}, 40e9, 16 * 2**30)
TEXT = TextFacts(train_bytes=10_000_000, held_out_bytes=500_000, documents=200, zstd_bits_per_byte=2.2)


def best(text=TEXT, machine=CPU, seconds=500.0, **wishes):
    return plan(text, machine, seconds, Wishes(**wishes))[0]


def test_plans_are_ranked_by_predicted_loss():
    ranked = plan(TEXT, CPU, 500.0)
    assert [p.bits_per_byte for p in ranked] == sorted(p.bits_per_byte for p in ranked)
    assert len({(p.model.d_model, p.model.num_layers) for p in ranked}) == len(ranked)


def test_more_time_gives_a_better_and_not_smaller_model():
    minute, hour = best(seconds=60.0), best(seconds=3600.0)
    assert hour.bits_per_byte < minute.bits_per_byte
    assert hour.parameters >= minute.parameters


def test_a_faster_machine_does_not_plan_smaller():
    fast = replace(CPU, gemm_flops={"bf16 x2": 860e11})
    assert best(machine=fast, seconds=500.0).parameters > best().parameters


def test_little_text_stops_when_more_passes_would_hardly_help():
    little = replace(TEXT, train_bytes=100_000)
    made = best(little, seconds=36_000.0)
    assert made.train_seconds < 36_000.0
    assert made.epochs == pytest.approx(worthwhile_epochs(BUILD_LAW, little, made.parameters), rel=0.05)


def test_time_is_used_and_not_exceeded():
    made = best()
    assert made.train_seconds <= 500.0
    assert made.train_seconds > 500.0 - 2 * made.seconds_per_step
    assert made.tokens == made.steps * made.batch_tokens


def test_wishes_are_granted():
    made = best(
        vocab_size=777, d_model=96, num_layers=3, context_length=64, batch_size=5, learning_rate=0.01, max_epochs=1
    )
    assert (made.model.vocab_size, made.model.d_model, made.model.num_layers) == (777, 96, 3)
    assert (made.model.context_length, made.batch_size, made.learning_rate) == (64, 5, 0.01)
    assert made.epochs <= 1.0


def test_memory_splits_the_batch_and_then_drops_the_shape():
    roomy = best(d_model=512, num_layers=8)
    tight = best(d_model=512, num_layers=8, machine=replace(CPU, memory_bytes=int(roomy.peak_bytes * 1.1)))
    assert roomy.micro_batches == 1
    assert tight.micro_batches > 1
    assert tight.batch_tokens == roomy.batch_tokens
    single = best(d_model=512, num_layers=8, batch_size=1, context_length=2048)
    tighter = replace(CPU, memory_bytes=int(single.peak_bytes * 1.2))
    recomputed = best(d_model=512, num_layers=8, batch_size=1, context_length=2048, machine=tighter)
    assert single.recompute == 0
    assert 0 < recomputed.recompute < 8  # as few blocks as it takes
    with pytest.raises(ValueError, match="fits into 0.0 GiB"):
        best(machine=replace(CPU, memory_bytes=1_000_000))


def test_a_measured_step_changes_the_number_of_steps_only():
    made = best()
    slower = at_speed(made, TEXT, 2 * made.seconds_per_step)
    assert slower.steps == pytest.approx(made.steps / 2, abs=1)
    assert slower.model == made.model
    assert slower.bits_per_byte > made.bits_per_byte


def test_a_trained_tokenizer_changes_passes_and_loss_per_token():
    made = best()
    known = with_bytes_per_token(made, TEXT, made.bytes_per_token * 1.1)
    assert known.tokens == made.tokens
    assert known.epochs == pytest.approx(made.epochs * 1.1)
    assert known.nats_per_token == pytest.approx(known.bits_per_byte * math.log(2) * known.bytes_per_token)


def test_fit_to_time_takes_at_least_one_step():
    assert fit_to_time(best(), TEXT, 0.0, Wishes()).steps == 1


def test_helpers():
    assert vocabulary_for(10) < vocabulary_for(10_000_000)
    assert guess_bytes_per_token(256) < guess_bytes_per_token(4096) < guess_bytes_per_token(65536)
    assert efficiency(128) < efficiency(192) < efficiency(256)
    assert efficiency(16) == efficiency(64)
    assert efficiency(4096) == efficiency(1024)


@pytest.mark.parametrize("d_model", [16, 64, 96, 128, 320, 400, 512])
def test_any_width_that_is_a_multiple_of_sixteen_makes_a_model(d_model):
    mixer = model_config(d_model, 2, 500, 64).blocks[0].mixer
    assert mixer.num_heads * mixer.d_head == d_model
    assert mixer.d_head % 2 == 0


def test_other_widths_are_refused_in_words():
    with pytest.raises(ValueError, match="multiple of 16"):
        best(d_model=100)


def test_description_names_what_was_decided():
    made, *others = plan(TEXT, CPU, 500.0)
    text = "\n".join(describe(made, TEXT, others[:1]))
    assert f"{made.parameters:,} parameters" in text
    assert f"{others[0].parameters:,} parameters" in text


def test_a_text_that_is_read_often_gets_dropout_and_fresh_text_does_not():
    little = replace(TEXT, train_bytes=500_000, held_out_bytes=25_000)
    made = best(d_model=128, num_layers=2, text=little)
    assert made.epochs > 14
    assert made.dropout == dropout_for(made.epochs) == 0.3
    assert best(d_model=128, num_layers=2, text=little, max_epochs=10).dropout == 0.15
    assert best(d_model=512, num_layers=8).dropout == 0.0


@pytest.mark.parametrize("seconds", [5, 10, 20, 40, 80, 160, 320])
def test_planned_passes_and_dropout_agree(seconds):
    for made in plan(replace(TEXT, train_bytes=1_000_000), CPU, seconds):
        assert made.dropout == dropout_for(made.epochs)
        fitted = fit_to_time(made, replace(TEXT, train_bytes=1_000_000), 1000 * seconds, Wishes())
        assert fitted.dropout > 0 or fitted.epochs <= FRESH_EPOCHS


def test_a_wish_for_dropout_is_granted():
    little = replace(TEXT, train_bytes=500_000, held_out_bytes=25_000)
    assert best(d_model=512, num_layers=8, dropout=0.4).dropout == 0.4
    without = best(d_model=128, num_layers=2, text=little, dropout=0.0)
    assert without.dropout == 0.0
    assert without.epochs > FRESH_EPOCHS
