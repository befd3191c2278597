import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from groundup.compression.distill import OnPolicy, check_same_tokens, distillation, token_divergence
from groundup.inference import Engine
from groundup.optim import AdamW
from groundup.tokenizer import Tokenizer
from groundup.train import next_token, train
from tests.compression.small import VOCAB, batch, batches, small_model, trained

LOGITS = st.lists(st.floats(-8, 8), min_size=4, max_size=4)


def small_student(seed=1, **options):
    return small_model(seed, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, d_ff=24, **options)


@given(LOGITS, LOGITS, st.floats(0.05, 0.95))
def test_divergences_by_torch(p_logits, q_logits, beta):
    p, q = torch.tensor([p_logits]).double(), torch.tensor([q_logits]).double()
    lp, lq = p.log_softmax(-1), q.log_softmax(-1)
    middle = (beta * lp.exp() + (1 - beta) * lq.exp()).log()
    expected = {
        "forward": F.kl_div(lq, lp, log_target=True, reduction="sum"),
        "reverse": F.kl_div(lp, lq, log_target=True, reduction="sum"),
        "jsd": beta * F.kl_div(middle, lp, log_target=True, reduction="sum")
        + (1 - beta) * F.kl_div(middle, lq, log_target=True, reduction="sum"),
    }
    for kind, value in expected.items():
        found = token_divergence(p, q, kind, beta)[0]
        torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-12)
        assert float(found) >= -1e-12
    assert float(token_divergence(p, p, "jsd", beta)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("hard", [0.0, 0.4])
@pytest.mark.parametrize("divergence", ["forward", "reverse"])
def test_gradients_equal_the_formulas(divergence, hard, temperature):
    """dL/dz of each kind written down by hand, and sent through the student's own backward pass."""
    teacher, student, b = small_model(), small_student(), batch(3)
    mask = (torch.rand(4, 17, generator=torch.Generator().manual_seed(0)) < 0.7).float()
    objective = distillation(teacher, divergence=divergence, temperature=temperature, hard=hard)
    loss = objective(student, b | {"mask": mask})
    loss.total.backward()
    found = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()

    logits, weights = student(b["tokens"][:, :-1]), mask[:, 1:, None]
    with torch.no_grad():
        p = (teacher(b["tokens"][:, :-1]) / temperature).softmax(-1)
        q = (logits / temperature).softmax(-1)
        if divergence == "forward":
            soft = q - p
        else:
            ratio = q.log() - p.log()
            soft = q * (ratio - (q * ratio).sum(-1, keepdim=True))
        by_token = logits.softmax(-1) - F.one_hot(b["tokens"][:, 1:], VOCAB)
    logits.backward(weights * ((1 - hard) * temperature * soft + hard * by_token))
    assert found and float(loss.weight) == float(mask[:, 1:].sum())
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-5)
    assert all(each.grad is None for each in teacher.parameters())


def test_hard_alone_is_next_token_and_a_student_like_the_teacher_is_done():
    teacher, student, b = small_model(), small_student(), batch(3)
    torch.testing.assert_close(distillation(teacher, hard=1.0)(student, b).total, next_token(student, b).total)
    loss = distillation(teacher)(small_model(), b)
    assert float(loss.total) == pytest.approx(0, abs=1e-4) and float(loss.metrics["divergence"]) == float(loss.total)
    torch.testing.assert_close(loss.metrics["cross_entropy"], next_token(small_model(), b).total.detach())


def test_segments_of_packed_documents_reach_both():
    teacher, student = small_model(), small_student()
    tokens = batch(0, rows=1, seq=8)["tokens"]
    packed = distillation(teacher)(student, {"tokens": tokens, "segments": torch.tensor([[0] * 4 + [1] * 5])})
    parts = [distillation(teacher)(student, {"tokens": t}) for t in (tokens[:, :5], tokens[:, 4:])]
    torch.testing.assert_close(packed.total, parts[0].total + parts[1].total)


def divergence_to(teacher, student):
    with torch.no_grad():
        return sum(
            float(token_divergence(teacher(b["tokens"]), student(b["tokens"]), "forward").mean()) for b in batches(700)
        )


def test_a_distilled_student_is_nearer_to_its_teacher_than_one_trained_alone():
    teacher = trained(small_model(), steps=40)
    before = {name: t.clone() for name, t in teacher.state_dict().items()}
    alone = trained(small_student(), steps=20, first=2000)
    distilled = trained(small_student(), steps=20, first=2000, objective=distillation(teacher, temperature=2.0))
    assert divergence_to(teacher, distilled) < 0.9 * divergence_to(teacher, alone)
    assert all(torch.equal(before[name], t) for name, t in teacher.state_dict().items())
    assert not teacher.training


def new_tokenizer(text="the cat sat"):
    return Tokenizer.train_from_iterator([text], 258, special_tokens=["<|endoftext|>"])


def test_on_policy_batches_are_the_students_own_text():
    student, prompts = small_student(vocab_size=258), [[5, 6, 7], [8], [9, 10]]
    source = OnPolicy(Engine(student, new_tokenizer()), prompts, 2, max_tokens=6, temperature=0)
    for expected in ([prompts[0], prompts[1]], [prompts[2], prompts[0]]):
        given_batch = next(source)
        for row, prompt in enumerate(expected):
            end = int((given_batch["mask"][row] > 0).nonzero().max()) + 1
            assert given_batch["tokens"][row, : len(prompt)].tolist() == prompt
            assert given_batch["mask"][row].tolist() == [0.0] * len(prompt) + [1.0] * (end - len(prompt)) + [0.0] * (
                given_batch["mask"].shape[1] - end
            )
            ids = list(prompt)
            for _ in range(end - len(prompt)):
                with torch.no_grad():
                    ids.append(int(student(torch.tensor([ids]))[0, -1].argmax()))
            assert given_batch["tokens"][row, :end].tolist() == ids


def test_on_policy_training_draws_anew_from_the_student_and_nears_the_teacher():
    teacher, student = small_model(vocab_size=258), small_student(vocab_size=258)
    source = OnPolicy(Engine(student, new_tokenizer()), [[n] for n in range(20)], 6, max_tokens=5)
    objective = distillation(teacher, divergence="reverse")
    fixed = [next(source) for _ in range(2)]
    with torch.no_grad():
        before = sum(float(objective(student, b).total) for b in fixed)
    state = source.state()
    train(student, source, objective, AdamW(student, lr=2e-2), 12, progress=False)
    with torch.no_grad():
        assert sum(float(objective(student, b).total) for b in fixed) < 0.9 * before
    source.load_state(state)
    again = next(source)
    source.load_state(state)
    assert torch.equal(next(source)["tokens"], again["tokens"])
    assert source.state()["given"] == state["given"] + 6


def test_mistakes_are_named():
    check_same_tokens(new_tokenizer(), new_tokenizer())
    with pytest.raises(ValueError, match="different tokenizers"):
        check_same_tokens(new_tokenizer(), new_tokenizer("a dog ran"))
    with pytest.raises(ValueError, match="the teacher has 37 tokens and the student 40"):
        distillation(small_model())(small_student(vocab_size=40), batch(0))
    with pytest.raises(ValueError, match="did you mean 'reverse'"):
        distillation(small_model(), divergence="revers")
    with pytest.raises(ValueError, match="temperature=0"):
        distillation(small_model(), temperature=0.0)
    with pytest.raises(ValueError, match="0 prompts"):
        OnPolicy(Engine(small_student(vocab_size=258), new_tokenizer()), [], 2)
