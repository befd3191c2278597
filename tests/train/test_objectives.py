import dataclasses
import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from groundup import presets
from groundup.model import EncoderDecoder, Transformer
from groundup.optim import AdamW, warmup_stable_decay
from groundup.train import masked_tokens, next_token, sequence_to_sequence, train
from groundup.train.feed import count_tokens, split
from groundup.train.masked import mask_tokens
from groundup.train.objectives import multi_token
from tests.train.small import VOCAB, Batches, batch, same_weights, tiny_model


def test_equals_cross_entropy_of_the_logits():
    model, b = tiny_model(), batch(0)
    loss = next_token(model, b)
    logits = model(b["tokens"][:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), b["tokens"][:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(loss.total, expected)
    assert float(loss.weight) == 32.0


def test_the_mask_weighs_each_prediction_and_its_first_column_nothing():
    model, b = tiny_model(), batch(0)
    mask = torch.zeros(4, 9)
    mask[:, 0] = 100.0
    mask[1, 3], mask[2, 8] = 1.0, 0.5
    loss = next_token(model, b | {"mask": mask})
    log_probs = model(b["tokens"][:, :-1]).log_softmax(-1)
    by_hand = -log_probs[1, 2, b["tokens"][1, 3]] - 0.5 * log_probs[2, 7, b["tokens"][2, 8]]
    torch.testing.assert_close(loss.total, by_hand)
    assert float(loss.weight) == 1.5


def test_nothing_counted_is_zero_and_has_a_zero_gradient():
    model = tiny_model()
    loss = next_token(model, batch(0) | {"mask": torch.zeros(4, 9)})
    loss.total.backward()
    assert loss.total.item() == loss.weight.item() == 0.0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters() if p.grad is not None)


def test_segments_hide_the_document_before():
    model = tiny_model()
    tokens = batch(0, rows=1)["tokens"]
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    packed = next_token(model, {"tokens": tokens, "segments": segments})
    parts = [next_token(model, {"tokens": tokens[:, :5]}), next_token(model, {"tokens": tokens[:, 4:]})]
    torch.testing.assert_close(packed.total, parts[0].total + parts[1].total)


def test_a_soft_capped_head_is_capped():
    model = tiny_model()
    capped = Transformer(dataclasses.replace(model.config, logit_softcap=0.5))
    capped.load_state_dict(model.state_dict())
    b = batch(0)
    expected = F.cross_entropy(capped(b["tokens"][:, :-1]).flatten(0, 1), b["tokens"][:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(next_token(capped, b).total, expected)


def test_z_loss_pulls_the_denominator_towards_one():
    model, b = tiny_model(), batch(0)
    with torch.no_grad():
        model.head_weight.mul_(20)
    logits = model(b["tokens"][:, :-1])
    plain, pulled = next_token(model, b), next_token(model, b, z_loss=0.5)
    torch.testing.assert_close(pulled.total, plain.total + 0.5 * logits.logsumexp(-1).square().sum())
    for _ in range(20):
        model.zero_grad()
        next_token(model, b, z_loss=10.0).total.backward()
        with torch.no_grad():
            gradient = model.head_weight.grad
            assert gradient is not None
            model.head_weight.sub_(1e-4 * gradient)
    assert model(b["tokens"][:, :-1]).logsumexp(-1).square().mean() < logits.logsumexp(-1).square().mean()


def test_a_model_that_sees_the_next_token_is_not_trained_to_predict_it():
    config = tiny_model().config
    block = dataclasses.replace(config.blocks[0], mixer=dataclasses.replace(config.blocks[0].mixer, causal=False))
    with pytest.raises(ValueError, match="next_token: .* sees the very token .* train it with masked_tokens"):
        next_token(Transformer(dataclasses.replace(config, blocks=(block,))), batch(0))


@pytest.mark.parametrize("bad", [-1, 31, -100, 10**9])
def test_ids_outside_the_vocabulary_are_refused(bad):
    b = batch(0)
    b["tokens"][3, 8] = bad
    with pytest.raises(ValueError, match=f"row 3, position 8: token id {bad} "):
        next_token(tiny_model(), b)


def tiny_encoder(**options):
    return Transformer(presets.encoder(tiny_model(**options).config))


def test_masked_tokens_is_the_cross_entropy_at_the_gaps():
    model, b = tiny_encoder(), batch(0, seq=20)
    loss = masked_tokens(model, b, mask_id=0)
    tokens = b["tokens"][:, 1:]
    gaps = mask_tokens(tokens, tokens != 0, 0, VOCAB)
    losses = F.cross_entropy(model(gaps.tokens).transpose(1, 2), tokens, reduction="none")
    torch.testing.assert_close(loss.total, losses.gather(1, gaps.places)[gaps.chosen].sum())
    assert float(loss.weight) == 4 * 3  # 15 % of 20 tokens


def test_masked_tokens_weighs_and_spares():
    """A weight of a half counts half; what has none, special ids and padding are never hidden."""
    model, b = tiny_encoder(), batch(0, seq=20)
    whole = masked_tokens(model, b, mask_id=0)
    half = masked_tokens(model, b | {"mask": torch.full((4, 21), 0.5)}, mask_id=0)
    torch.testing.assert_close(half.total, whole.total / 2)
    assert float(half.weight) == 6.0
    read = []
    model.embed.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    mask = torch.zeros(4, 21)
    mask[:, 5] = 1
    loss = masked_tokens(model, b | {"mask": mask}, mask_id=0)
    untouched = [column for column in range(20) if column != 4]
    assert float(loss.weight) == 4.0 and torch.equal(read[0][:, untouched], b["tokens"][:, 1:][:, untouched])
    special = [*range(1, VOCAB)]
    assert float(masked_tokens(model, b, mask_id=0, special_ids=special).weight) == 0.0
    positions = torch.full((4, 21), -1)
    assert float(masked_tokens(model, b | {"positions": positions}, mask_id=0).weight) == 0.0


def test_masked_tokens_does_not_depend_on_micro_batches():
    model, b = tiny_encoder(), batch(0, rows=6, seq=20)
    b["seed"] = torch.arange(6)
    whole = masked_tokens(model, b, mask_id=0)
    parts = [masked_tokens(model, part, mask_id=0) for part in split(b, 3)]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    other = masked_tokens(model, b | {"seed": b["seed"] + 1}, mask_id=0)
    assert not torch.isclose(other.total, whole.total)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mask_id": VOCAB}, "mask_id=31 is outside .* 0..30"), ({"mask_id": 0, "share": 1.5}, "share=1.5; expected")],
)
def test_options_of_masked_tokens(options, message):
    with pytest.raises(ValueError, match=message):
        masked_tokens(tiny_encoder(), batch(0), **options)


def test_objectives_and_models_that_do_not_fit():
    pairs = EncoderDecoder(PAIRS_CONFIG)
    with pytest.raises(ValueError, match="every layer of the model is causal"):
        masked_tokens(tiny_model(), batch(0), mask_id=0)
    with pytest.raises(ValueError, match="a Transformer has no source; give an EncoderDecoder"):
        sequence_to_sequence(tiny_model(), batch(0))
    for objective in (next_token, multi_token, partial(masked_tokens, mask_id=0)):
        with pytest.raises(ValueError, match="[a-z]+_tokens?: an EncoderDecoder needs a source"):
            objective(pairs, batch(0))
    with pytest.raises(ValueError, match="split=1.0 of 9 columns"):
        sequence_to_sequence(pairs, batch(0), split=1.0)
    with pytest.raises(ValueError, match="row 0, position 2: token id 99"):
        sequence_to_sequence(pairs, batch(0) | {"source": torch.tensor([[1, 2, 99]]).expand(4, -1)})


PAIRS_CONFIG = presets.vaswani_encoder_decoder(vocab_size=VOCAB, d_model=16, num_layers=1, num_heads=2)


def test_pairs_are_scored_given_their_source_and_their_padding_is_not():
    model, b = EncoderDecoder(PAIRS_CONFIG), batch(0)
    source = batch(1, seq=5)["tokens"]
    positions = torch.tensor([0, 1, 2, 3, -1, -1]).expand(4, -1)
    mask = (torch.arange(9) < 7).float().expand(4, -1)
    loss = sequence_to_sequence(model, b | {"source": source, "source_positions": positions, "mask": mask})
    logits = model(source[:, :4], b["tokens"][:, :6])
    expected = F.cross_entropy(logits.flatten(0, 1), b["tokens"][:, 1:7].flatten(), reduction="sum")
    torch.testing.assert_close(loss.total, expected)
    assert float(loss.weight) == 4 * 6


def test_windows_of_text_are_cut_into_source_and_continuation():
    model, b = EncoderDecoder(PAIRS_CONFIG), batch(0)
    loss = sequence_to_sequence(model, b, split=0.33)
    logits = model(b["tokens"][:, :3], b["tokens"][:, 2:-1])
    expected = F.cross_entropy(logits.flatten(0, 1), b["tokens"][:, 3:].flatten(), reduction="sum")
    torch.testing.assert_close(loss.total, expected)
    assert float(loss.weight) == 4 * 6
    seeded = sequence_to_sequence(model, b | {"seed": torch.arange(4)}, split=0.33)  # a number per row has no columns
    assert torch.equal(seeded.total, loss.total)


def test_a_document_that_begins_in_the_target_has_no_source():
    model, b = EncoderDecoder(PAIRS_CONFIG), batch(0)
    b["segments"] = torch.tensor([0] * 7 + [1] * 2).expand(4, -1)
    b["positions"] = torch.tensor([*range(7), 0, 1]).expand(4, -1)
    before = sequence_to_sequence(model, b, split=0.5)
    changed = b["tokens"].clone()
    changed[:, 0] = (changed[:, 0] + 1) % VOCAB
    mask = (torch.arange(9) == 8).float().expand(4, -1)
    ends = [sequence_to_sequence(model, b | {"tokens": t, "mask": mask}).total for t in (b["tokens"], changed)]
    torch.testing.assert_close(*ends)
    assert not torch.isclose(sequence_to_sequence(model, b | {"tokens": changed}).total, before.total)


def test_sources_are_not_counted_as_predictions():
    assert count_tokens([batch(0) | {"source": batch(1)["tokens"], "source_positions": batch(1)["tokens"]}]) == 4 * 8


# Learning


@pytest.mark.parametrize("objective", ["masked", "pairs"])
def test_a_resumed_run_and_micro_batches_give_the_same_weights(objective, tmp_path):
    def go(name, steps, micro_batches=1, resume=False):
        model = tiny_encoder() if objective == "masked" else EncoderDecoder(PAIRS_CONFIG)
        function = partial(masked_tokens, mask_id=0) if objective == "masked" else sequence_to_sequence
        model.dropout = 0.0 if micro_batches > 1 else 0.1
        torch.manual_seed(99 if resume else 0)
        train(
            model, Batches(), function, AdamW(model, lr=1e-2), steps, progress=False,
            run_dir=tmp_path / name, resume=resume, micro_batches=micro_batches,
        )  # fmt: skip
        return model

    whole = go("whole", 4)
    go("cut", 2)
    assert same_weights(go("cut", 4, resume=True), whole)
    for a, b in zip(go("two", 3, 2).parameters(), go("four", 3, 4).parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def learn(model, source, objective, steps):
    optimizer = AdamW(model, lr=1e-2)
    schedule = warmup_stable_decay(10, steps, 0.3)
    train(model, source, objective, optimizer, steps, schedule=schedule, progress=False)
    return model.eval()


def test_gaps_that_both_neighbours_determine_are_learned():
    """Every second token is the sum of its neighbours; the others are random."""

    def rows(number):
        free = torch.randint(1, 4, (64, 6), generator=torch.Generator().manual_seed(number))
        return torch.stack([free[:, :-1], free[:, :-1] + free[:, 1:]], 2).flatten(1)

    source = ({"tokens": F.pad(rows(i), (1, 0))} for i in itertools.count())
    config = presets.llama(vocab_size=7, d_model=32, num_layers=2, num_heads=2, d_ff=64)
    objective = partial(masked_tokens, mask_id=0, share=0.25)
    model = learn(Transformer(presets.encoder(config)), source, objective, 60)
    fresh = rows(10**6)
    gap = fresh.clone()
    gap[:, 5] = 0  # between columns 4 and 6: who sees one side only is right in a third of all rows
    assert (model(gap)[:, 5].argmax(-1) == fresh[:, 5]).float().mean() > 0.8


@pytest.mark.slow
def test_reversing_a_text_is_learned():
    def pairs(number):
        text = torch.randint(1, 6, (64, 4), generator=torch.Generator().manual_seed(number))
        return {"source": text, "tokens": F.pad(text.flip(1), (1, 0))}

    config = presets.vaswani_encoder_decoder(vocab_size=6, d_model=32, num_layers=1, num_heads=2, d_ff=64)
    model = learn(EncoderDecoder(config), (pairs(i) for i in itertools.count()), sequence_to_sequence, 150)
    fresh = pairs(10**6)
    written = model.generate(fresh["source"], start=0, max_tokens=4)
    assert (written == fresh["tokens"][:, 1:]).float().mean() > 0.95
