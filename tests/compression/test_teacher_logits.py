import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup.compression.distill import distillation, token_divergence
from groundup.compression.teacher_logits import HEADER, TeacherLogits, row_keys, top_classes
from groundup.compression.teacher_writing import write_teacher_logits
from groundup.optim import AdamW
from groundup.tokenizer import Tokenizer
from groundup.train import train
from tests.compression.small import VOCAB, batch, batches, small_model
from tests.compression.test_distill import small_student

LOGITS = st.lists(st.floats(-8, 8), min_size=6, max_size=6)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train_from_iterator(["the cat sat"], 258, special_tokens=["<|endoftext|>"])


@pytest.fixture
def written(tmp_path, tokenizer):
    def write(name="cache", teacher=None, given=None, **options):
        options = {"tokenizer": tokenizer, "k": 5, "part_tokens": 60} | options
        return write_teacher_logits(teacher or small_model(), given or batches(), tmp_path / name, **options)

    return write


def loss_and_gradients(teacher, given, **settings):
    student = small_student()
    loss = distillation(teacher, **settings)(student, given)
    loss.total.backward()
    return loss, {name: p.grad for name, p in student.named_parameters()}


@pytest.mark.parametrize(
    "settings", [{}, {"hard": 0.3, "temperature": 2.0}, {"divergence": "reverse"}, {"divergence": "jsd"}]
)
def test_with_the_whole_vocabulary_loss_and_gradients_are_the_running_teachers(written, settings):
    given = batch(1) | {"mask": (torch.rand(4, 17, generator=torch.Generator().manual_seed(0)) < 0.7).float()}
    cache = written(k=VOCAB, dtype="float32", temperature=settings.get("temperature", 1.0))
    expected, gradients = loss_and_gradients(small_model(), given, **settings)
    found, ours = loss_and_gradients(cache, next(iter(cache.beside([given]))), **settings)
    torch.testing.assert_close(found.total, expected.total)
    torch.testing.assert_close(found.metrics, expected.metrics)
    assert gradients and float(expected.total.detach()) > 1
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6)


def test_what_is_kept_is_the_top_of_the_softmax_and_the_rest_as_one(written):
    teacher, given = small_model(), batch(2)
    with torch.no_grad():
        p = (teacher(given["tokens"][:, :-1]) / 2).softmax(-1).numpy()
    for dtype, off in (("float32", 1e-5), ("float16", 2e-3)):
        ids, log_probs = written(dtype, k=3, dtype=dtype, temperature=2.0).look_up(given)
        order = np.argsort(-p, -1)[..., :3]
        assert (ids.numpy() == order).all()
        top = np.take_along_axis(p, order, -1)
        np.testing.assert_allclose(log_probs[..., :3].exp(), top, rtol=off)
        np.testing.assert_allclose(log_probs[..., 3].exp(), 1 - top.sum(-1), rtol=off)


@given(LOGITS, LOGITS, st.integers(1, 6), st.sampled_from(["forward", "reverse", "jsd"]))
def test_classes_are_a_lower_bound_of_every_divergence_and_grow_with_k(p_logits, q_logits, k, kind):
    p, q = (torch.tensor(each, dtype=torch.float64).log_softmax(-1) for each in (p_logits, q_logits))
    ids = p.argsort(descending=True)
    apart = [
        float(token_divergence(top_classes(p, ids[:n]), top_classes(q, ids[:n]), kind)) for n in (max(k - 1, 1), k, 6)
    ]
    assert apart[0] <= apart[1] + 1e-9 and apart[1] <= apart[2] + 1e-9
    assert apart[2] == pytest.approx(float(token_divergence(p, q, kind)), abs=1e-12)


def minimum(loss):
    """The distribution that minimises a function of free logits."""
    logits = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], lr=0.5, max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15)

    def closure():
        optimizer.zero_grad()
        value = loss(logits)
        value.backward()
        return value

    optimizer.step(closure)
    return logits.detach().softmax(-1)


def test_the_tail_as_a_class_is_not_biased_and_a_renormalised_top_is():
    """What a student with free logits ends at: the kept probabilities themselves, against those scaled up."""
    p = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.06, 0.04], dtype=torch.float64)
    ids = torch.arange(2)
    as_class = minimum(
        lambda z: token_divergence(top_classes(p.log(), ids), top_classes(z.log_softmax(-1), ids), "forward")
    )
    torch.testing.assert_close(as_class[:2], p[:2], atol=1e-6, rtol=0)
    torch.testing.assert_close(as_class[2:], torch.full((4,), 0.3 / 4, dtype=torch.float64), atol=1e-6, rtol=0)
    scaled = p[:2] / p[:2].sum()
    renormalised = minimum(lambda z: -(scaled * z.log_softmax(-1)[:2]).sum())
    torch.testing.assert_close(renormalised[:2], scaled, atol=1e-3, rtol=0)
    assert float(renormalised[0]) > 1.4 * float(p[0])


def test_the_gradient_of_the_tail_is_the_students_own_spread():
    p, z = torch.tensor([0.5, 0.2, 0.2, 0.1]).double(), torch.tensor([0.3, -1.0, 0.4, 2.0]).double().requires_grad_()
    ids = torch.tensor([0])
    token_divergence(top_classes(p.log(), ids), top_classes(z.log_softmax(-1), ids), "forward").backward()
    q = z.detach().softmax(-1)
    assert z.grad is not None
    torch.testing.assert_close(z.grad[0], q[0] - p[0])
    torch.testing.assert_close(z.grad[1:], q[1:] * (1 - 0.5 / q[1:].sum()))


def test_rows_are_found_in_any_order_and_by_all_that_the_teacher_saw(written):
    cache = written()
    whole = cache.look_up({"tokens": torch.cat([each["tokens"] for each in batches()])})
    order = torch.tensor([7, 0, 11, 7])
    some = cache.look_up({"tokens": torch.cat([each["tokens"] for each in batches()])[order]})
    assert all(torch.equal(a[order], b) for a, b in zip(whole, some, strict=True))
    first = batch(0)["tokens"]
    other_last = torch.cat([first[:, :-1], (first[:, -1:] + 1) % VOCAB], 1)
    assert torch.equal(cache.look_up({"tokens": other_last})[0], whole[0][:4])
    with pytest.raises(ValueError, match=r"row 0 of a batch is not in this cache \(4 of 4"):
        cache.look_up(batch(77))
    segments = {"tokens": first, "segments": torch.ones_like(first).cumsum(1) // 9}
    with pytest.raises(ValueError, match="is not in this cache"):
        cache.look_up(segments)
    packed = written("packed", given=[segments]).look_up(segments)
    alone = written("alone", given=[{"tokens": first[:, :9]}]).look_up({"tokens": first[:, :9]})
    torch.testing.assert_close(packed[1][:, :8], alone[1], rtol=1e-2, atol=1e-2)
    assert not torch.allclose(packed[1][:, 8:], whole[1][:4, 8:], rtol=1e-2, atol=1e-2)


def test_training_and_resuming_with_a_cache_is_training_with_the_teacher(written, tmp_path):
    teacher = small_model()
    given = batches(0, 6)
    cache = written(k=VOCAB, dtype="float32", given=given)
    online, cached, halves = small_student(), small_student(), small_student()
    train(online, given, distillation(teacher), AdamW(online, lr=1e-2), 6, progress=False)
    train(cached, cache.beside(given), distillation(cache), AdamW(cached, lr=1e-2), 6, progress=False, micro_batches=2)
    for steps in (3, 6):
        train(halves, cache.beside(given), distillation(cache), AdamW(halves, lr=1e-2), steps, progress=False,
              micro_batches=2, run_dir=tmp_path / "run", resume=True)  # fmt: skip
    for ours, other, theirs in zip(cached.parameters(), halves.parameters(), online.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
        assert torch.equal(ours, other)


def test_an_interrupted_cache_is_gone_on_with_and_is_the_same(written, tmp_path):
    whole = written("whole")
    names = sorted(file.name for file in whole.folder.iterdir())
    assert len(names) == 4

    def stop(done, total):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written("stopped", progress=stop)
    with pytest.raises(ValueError, match="8 of 12 rows are written; run what writes it once more"):
        TeacherLogits.open(tmp_path / "stopped")
    first, seen = (tmp_path / "stopped" / names[0]).stat().st_mtime_ns, []
    written("stopped", progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 12), (8, 12), (12, 12)] and (tmp_path / "stopped" / names[0]).stat().st_mtime_ns == first
    for name in names:
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    bytes_per_token = 2 * 5 + 2 * 6
    assert sum((whole.folder / name).stat().st_size for name in names if name != HEADER) == pytest.approx(
        12 * 16 * bytes_per_token, abs=3 * 400
    )


def test_a_cache_of_something_else_is_refused(written, tokenizer, tmp_path):
    written()
    other = Tokenizer.train_from_iterator(["a dog ran"], 258, special_tokens=["<|endoftext|>"])
    for options, match in (
        ({"teacher": small_model(1)}, "another teacher"),
        ({"tokenizer": other}, "another tokenizer"),
        ({"given": batches(5)}, "other text"),
        ({"k": 6}, "k=5, and 6 is asked for"),
        ({"temperature": 2.0}, "temperature=1.0, and 2.0"),
        ({"part_tokens": 1}, "files of another size"),
    ):
        if match == "files of another size":
            options = options | {"given": [{"tokens": t[None]} for each in batches() for t in each["tokens"]]}
        with pytest.raises(ValueError, match=match):
            written(**options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(ValueError, match="already holds something"):
        written("full")
    with pytest.raises(FileNotFoundError, match="no teacher's logits"):
        TeacherLogits.open(tmp_path / "full")
    for options, match in (({"k": 0}, "k=0"), ({"k": 99}, "k=99"), ({"dtype": "float8"}, "float8"),
                           ({"temperature": 0.0}, "temperature=0"),
                           ({"given": [batch(0), batch(0, seq=4)]}, "batches of one length")):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            written("new", **options)
    with pytest.raises(ValueError, match=r"temperature=2.0, and .* was written at 1.0"):
        distillation(written(), temperature=2.0)
    with pytest.raises(ValueError, match=r"give train the source cache.beside"):
        distillation(written())(small_student(), batch(0))
    with pytest.raises(ValueError, match="the teacher has 37 tokens and the student 40"):
        distillation(written())(small_student(vocab_size=40), batch(0))


def test_damage_is_named_and_what_is_removed_is_written_again(written):
    cache = written()
    part, header = cache.folder / "logits-00001.safetensors", cache.folder / HEADER
    good, said = part.read_bytes(), header.read_bytes()
    for damage, match in (
        (good[:-1], r"logits-00001.safetensors: [\d,]+ bytes, written were"),
        (good[:-9] + b"\1" + good[-8:], r"logits-00001.safetensors: its content is not what was written"),
    ):
        part.write_bytes(damage)
        with pytest.raises(ValueError, match=match):
            written()
    with pytest.raises(ValueError, match="cut short while in use"):
        part.write_bytes(good[:500])
        cache.look_up(batch(1))
    part.unlink()
    with pytest.raises(ValueError, match=r"logits-00001.safetensors: missing"):
        TeacherLogits.open(cache.folder)
    written()
    assert part.read_bytes() == good
    for damage in (said[:-20], said.replace(b'"k": 5', b'"k": 6'), json.dumps({"format": 9}).encode()):
        header.write_bytes(damage)
        with pytest.raises(ValueError, match=HEADER):
            TeacherLogits.open(cache.folder)


def test_keys_of_rows_differ_by_name_as_by_value():
    tokens = torch.zeros(3, 5, dtype=torch.long)
    one = {"tokens": tokens, "positions": tokens + 1}
    assert (
        len({int(row_keys(each)[0]) for each in ({"tokens": tokens}, one, {"tokens": tokens, "segments": tokens + 1})})
        == 3
    )
    assert len(set(row_keys(one).tolist())) == 1
