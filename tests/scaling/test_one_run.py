import math

import pytest
import torch

from groundup.corpus import Document
from groundup.model import Transformer
from groundup.scaling import modern
from groundup.scaling.one_run import gradient_norms, loss_on, measure_timings, texts_of, thinned


def test_the_loss_of_an_untrained_model_is_that_of_guessing(tiny):
    """Within a nat of log(270) = 5.6; the untrained head adds a little."""
    batch = {"tokens": torch.randint(0, 270, (4, 17), generator=torch.Generator().manual_seed(0))}
    assert loss_on(Transformer(modern(tiny)), batch) == pytest.approx(math.log(270), abs=1.0)


def test_curves_are_means_over_stretches():
    assert thinned([3.0, 1.0]) == [[1, 3.0], [2, 1.0]]
    curve = thinned([float(i) for i in range(120)])
    assert len(curve) == 60 and curve[0] == [2, 0.5] and curve[-1] == [120, 118.5]
    assert thinned([]) == []


def test_texts_are_cut_between_characters():
    documents = [Document("abc", ""), Document("äöü", ""), Document("never", "")]
    assert texts_of(documents, 6) == ["abc", "ä"]


def test_gradient_norms_are_those_of_the_mean_loss_and_leave_no_gradient(tiny):
    model = Transformer(modern(tiny))
    batch = {"tokens": torch.arange(17)[None]}
    (norm,) = gradient_norms(model, batch)
    loss = torch.nn.functional.cross_entropy(model(batch["tokens"][:, :-1])[0], batch["tokens"][0, 1:])
    gradients = torch.autograd.grad(loss, list(model.blocks.parameters()))
    assert norm == pytest.approx(torch.cat([g.flatten() for g in gradients]).norm().item(), rel=1e-4)
    assert all(p.grad is None for p in model.parameters())


def test_timings_are_one_for_each_variant_and_the_fastest_is_not_slower(tiny):
    timings = measure_timings([modern(tiny)] * 2, tiny, torch.device("cpu"))
    assert len(timings) == 2 and all(0 < t.fastest_step <= t.step for t in timings)
