"""Scores by position and at other lengths: what they add up to, and models of which the answer is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from groundup.evaluation import bits_per_byte, score_by_position, score_lengths, token_nats, with_scaling
from groundup.evaluation.lengths import SCALINGS, PositionScores, concatenated, is_rotary, longest_context
from groundup.model import (
    AttentionConfig,
    BlockConfig,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    Rope,
    SinusoidalPositions,
    Transformer,
)
from groundup.model.rope_scaling import LinearScaling, YarnScaling

from .test_perplexity import byte_tokenizer

TEXTS = ["The cat sat on the mat.", "", "é", "A longer document, with which several windows can be filled." * 3]
TOKENIZER = byte_tokenizer()


def model(mixer=None, **options):
    mixer = mixer or AttentionConfig(2, 1, 8)
    made = Transformer(ModelConfig(257, 16, 2, (BlockConfig(mixer, MLPConfig(24)),), 16, **options))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return made.eval()


def test_every_position_by_hand():
    """One forward pass for each token, with the tokens of its window before it, and of the one before that the last."""
    made, ids = model(), [256, *concatenated(TOKENIZER, TEXTS).tolist()]
    found = score_by_position(made, TOKENIZER, TEXTS, 8)
    assert found.nats.shape == ((len(ids) - 1) // 8, 8)
    for w, p in ((0, 0), (0, 7), (3, 0), (5, 4)):
        logits = made(torch.tensor([ids[8 * w : 8 * w + p + 1]]))[0, -1].detach().double()
        assert found.nats[w, p] == pytest.approx(float(logits.logsumexp(0) - logits[ids[8 * w + p + 1]]), abs=1e-5)


def test_positions_add_up_to_the_whole_score():
    made, ids = model(), concatenated(TOKENIZER, TEXTS)
    found = score_by_position(made, TOKENIZER, TEXTS, 8)
    ids = ids[: found.nats.size]
    (whole,) = token_nats(made, [ids], begin=256, context_length=8, stride=8)
    assert found.bits_per_token.sum() * len(found.nats) == pytest.approx(whole.sum() / math.log(2))
    assert found.bits_per_byte * found.bytes == pytest.approx(whole.sum() / math.log(2))
    assert found.bytes == (ids != 256).sum(), "an end_of_text is no text"


def test_one_document_of_whole_windows_is_what_bits_per_byte_says():
    text = "abcdefghijklmno" * 5 + "abcd"  # 79 bytes and an end_of_text
    alone = bits_per_byte(model(), TOKENIZER, [text], context_length=16, stride=16)
    assert score_by_position(model(), TOKENIZER, [text], 16).bits_per_byte == pytest.approx(alone.bits_per_byte)


def test_stretches_are_means_of_positions():
    nats = np.log(2) * np.array([[1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 5.0, 6.0]])
    scores = PositionScores(nats, 7)
    assert scores.bits_per_token.tolist() == pytest.approx([2.0, 3.0, 4.0, 5.0])
    assert scores.bits_per_token_up_to([1, 2, 4]) == pytest.approx([2.0, 3.0, 4.5])
    assert scores.bits_per_byte == pytest.approx(28 / 7)


@pytest.mark.parametrize("rope", [None, Rope()])
def test_a_model_that_sees_one_token_scores_the_same_at_every_length(rope):
    made = model(AttentionConfig(2, 1, 8, window=1, rope=rope))
    scores = score_lengths(made, TOKENIZER, TEXTS, [1, 2, 4])
    for score in scores:
        np.testing.assert_allclose(score.nats.ravel(), scores[0].nats.ravel(), atol=1e-5)
        assert score.bytes == scores[0].bytes


def test_a_model_that_sees_three_tokens_differs_only_where_windows_begin():
    made = model(AttentionConfig(2, 1, 8, window=2, rope=None))  # two layers, each one token back
    short, long = score_lengths(made, TOKENIZER, TEXTS, [1, 2])
    differ = np.abs(short.nats.ravel() - long.nats.ravel()) > 1e-4
    assert np.flatnonzero(differ).tolist() and all(i % 32 in (16, 17) for i in np.flatnonzero(differ))


def test_learned_positions_cannot_and_say_so():
    made = model(AttentionConfig(2, 1, 8, rope=None), positions=LearnedPositions(32))
    scores = score_lengths(made, TOKENIZER, TEXTS, [1, 2, 4])
    assert [score is None for score in scores] == [False, False, True]
    assert scores[0].nats.size == scores[1].nats.size, "all score the same tokens"
    with pytest.raises(ValueError, match="context_length=64: this model learned 32 positions"):
        score_by_position(made, TOKENIZER, TEXTS, 64)
    assert longest_context(made.config) == 32
    assert longest_context(replace(made.config, positions=SinusoidalPositions(32))) is None


def test_scaling_changes_the_copy_and_leaves_the_model():
    made = model()
    tokens = torch.arange(40)[None]
    before = made(tokens)
    stretched = with_scaling(made, LinearScaling(4.0))
    assert torch.equal(made(tokens), before) and made.config.blocks[0].mixer.rope.scaling is None
    # Every pair four times slower: a token at 4 p looks as one at p did.
    torch.testing.assert_close(stretched(tokens, positions=4 * torch.arange(40)[None]), before)
    assert not torch.allclose(stretched(tokens), before, atol=1e-3)
    assert torch.equal(with_scaling(made, LinearScaling(1.0))(tokens), before)


def test_an_unknown_scaling_is_refused():
    with pytest.raises(ValueError, match="scaling 'yarm' is unknown; did you mean 'yarn'"):
        score_lengths(model(), TOKENIZER, TEXTS, [1], scaling="yarm")


def test_scaling_keeps_the_compute_type_and_fits_experts():
    block = BlockConfig(AttentionConfig(2, 1, 8), MoEConfig(4, 2, 8))
    made = Transformer(ModelConfig(257, 16, 2, (block,), 16))
    made.compute_dtype = torch.bfloat16
    stretched = with_scaling(made, YarnScaling(2.0, 16))
    assert stretched.compute_dtype == torch.bfloat16 and stretched.training == made.training
    assert stretched(torch.arange(40)[None]).isfinite().all()


@pytest.mark.parametrize("scaling", SCALINGS)
def test_each_named_scaling_is_the_model_itself_at_its_own_length(scaling):
    plain, scaled = (score_lengths(model(), TOKENIZER, TEXTS, [1, 4], scaling=s) for s in (None, scaling))
    assert scaled[0].bits_per_byte == pytest.approx(plain[0].bits_per_byte, abs=1e-6)
    assert abs(scaled[1].bits_per_byte - plain[1].bits_per_byte) > 1e-4


@pytest.mark.usefixtures("unchecked")
def test_errors():
    nope = model(AttentionConfig(2, 1, 8, rope=None))
    assert not is_rotary(nope.config) and is_rotary(model().config)
    with pytest.raises(ValueError, match="no rotary embedding to stretch"):
        with_scaling(nope, LinearScaling(2.0))
    with pytest.raises(ValueError, match="trained with one already"):
        with_scaling(with_scaling(model(), LinearScaling(2.0)), LinearScaling(2.0))
    with pytest.raises(ValueError, match="have 4 tokens, fewer than a window of 16"):
        score_by_position(nope, TOKENIZER, ["abc"], 16)
    with pytest.raises(ValueError, match="have 0 tokens"):
        score_by_position(nope, TOKENIZER, [], 16)
    with pytest.raises(ValueError, match="context_length=3: expected .* a divisor of multiple=16"):
        score_by_position(nope, TOKENIZER, TEXTS, 3, multiple=16)
