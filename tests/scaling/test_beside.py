"""What stands beside the rungs: its sizes, and its scores held to sums made token by token."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from groundup.accounting import count_parameters
from groundup.model import EncoderDecoder
from groundup.scaling import AblationSettings, HistorySettings, modern
from groundup.scaling.beside import (
    _make_pair,
    beside,
    half_bits_per_byte,
    half_windows,
    masked_config,
    pair_config,
    pseudo_bits_per_byte,
)
from groundup.scaling.one_run import Material, make_model
from groundup.tokenizer import Tokenizer

CPU = torch.device("cpu")
TEXTS = ["the cat sat on the mat, and the dog did not. " * 3, "é", "a second text, long enough for windows of sixteen."]
TRAINING = AblationSettings(
    d_model=16, num_layers=2, num_heads=2, context_length=16, batch_size=2, vocab_size=270, steps=4, seeds=2
)  # fmt: skip


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    from groundup import data

    tokenizer = Tokenizer.train_from_iterator(TEXTS, 270)
    shards = tmp_path_factory.mktemp("shards") / "train"
    data.write_shards(TEXTS * 5, tokenizer, shards)
    return Material(shards, tokenizer, TEXTS, TEXTS, CPU)


def test_an_encoder_decoder_has_the_layers_and_parameters_of_one_decoder():
    for training in (AblationSettings(), replace(TRAINING, d_model=32)):
        config = pair_config(training)
        with torch.device("meta"):
            made = sum(p.numel() for p in EncoderDecoder(config).parameters())
        assert made == pytest.approx(count_parameters(modern(training)).total, rel=0.02)
        layers = config.encoder.num_layers + config.decoder.num_layers
        assert layers == training.num_layers and not config.encoder.causal and config.decoder.causal


def test_windows_are_whole_and_of_one_document(material):
    end, rows = material.tokenizer.end_of_text, half_windows(material, TRAINING)
    assert rows.shape[1] == 17 and rows[0, 0] == end
    assert (rows[:, 1:-1] != end).all()
    whole = np.array([end, *material.tokenizer.encode(TEXTS[0]), end])
    assert (rows[1] == whole[16:33]).all()


def test_second_halves_are_scored_given_the_first(material):
    """17 columns are cut at 8: columns 8 to 16 are scored, column 8 from the eight before it."""
    model = make_model(modern(TRAINING), TRAINING, 0, CPU)
    rows, nats, size = half_windows(material, TRAINING), 0.0, 0
    with torch.no_grad():
        for row in rows:
            for i in range(8, 17):
                logits = model(torch.from_numpy(row[:i])[None])[0, -1].double()
                nats -= float(logits.log_softmax(-1)[row[i]])
            size += len(
                material.tokenizer.decode_bytes([t for t in row[8:].tolist() if t != material.tokenizer.end_of_text])
            )
    assert half_bits_per_byte(model, material, rows) == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_an_encoder_decoder_is_scored_on_the_same_tokens(material):
    """The source is columns 0 to 7; the decoder starts from column 7 and is given the scored ones one after another."""
    model = _make_pair(pair_config(TRAINING), TRAINING, 0, CPU)
    rows, nats, size = half_windows(material, TRAINING), 0.0, 0
    with torch.no_grad():
        for row in rows:
            source = torch.from_numpy(row[:8])[None]
            for i in range(8, 17):
                logits = model(source, torch.from_numpy(row[7:i])[None])[0, -1].double()
                nats -= float(logits.log_softmax(-1)[row[i]])
            size += len(
                material.tokenizer.decode_bytes([t for t in row[8:].tolist() if t != material.tokenizer.end_of_text])
            )
    assert half_bits_per_byte(model, material, rows) == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_each_token_is_masked_alone(material):
    model = make_model(masked_config(TRAINING), TRAINING, 0, CPU)
    ids, nats = torch.tensor(material.tokenizer.encode(TEXTS[0])[:20]), 0.0
    with torch.no_grad():
        for piece in (ids[:16], ids[16:]):
            for i in range(len(piece)):
                gap = piece.clone()
                gap[i] = 270
                nats -= float(model(gap[None])[0, i].double().log_softmax(-1)[piece[i]])
    bits, scored = pseudo_bits_per_byte(model, material, TRAINING, 20)
    assert scored == 20
    size = len(material.tokenizer.decode_bytes(ids.tolist()))
    assert bits == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_all_of_the_held_out_text_is_enough(material):
    model = make_model(masked_config(TRAINING), TRAINING, 0, CPU)
    _, scored = pseudo_bits_per_byte(model, material, TRAINING, 10_000)
    assert scored == sum(len(material.tokenizer.encode(text)) for text in TEXTS)


def test_every_model_has_a_row_and_a_score_by_seed(material):
    settings = HistorySettings(beside=2, masked=20)
    rows = beside(settings, TRAINING, material, {"gpt": 0.003, "gpt2017": 0.001}, 4)
    assert [row["name"] for row in rows] == ["gpt, same part", "encdec", "mlm"]
    for row in rows:
        assert len(row["bits_per_byte"]) == 2 and row["bits_per_byte"][0] != row["bits_per_byte"][1]
    assert rows[0]["scored_tokens"] == rows[1]["scored_tokens"] == 9 * len(half_windows(material, TRAINING))
    assert rows[1]["rate"] == 0.001 and rows[2]["scored_tokens"] == 20


def test_without_a_whole_window_the_masked_model_is_alone(material):
    short = replace(material, held_out=["too short"])
    rows = beside(HistorySettings(masked=20), TRAINING, short, {"gpt": 0.003, "gpt2017": 0.001}, 4)
    assert [row["name"] for row in rows] == ["mlm"] and rows[0]["bits_per_byte"][0] > 0
