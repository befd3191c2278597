"""Schedules by hand, by the papers' formulas, and by properties over many sizes."""

import itertools

import pytest

from groundup.parallel.schedules import Action, bubble_fraction, most_live, schedule, simulate

SIZES = list(itertools.product((1, 2, 3, 4, 8), (1, 2, 3, 4, 7, 8, 16)))


def all_ranks(name, ranks, microbatches, virtual=1):
    return [schedule(name, ranks, microbatches, rank, virtual) for rank in range(ranks)]


def test_the_picture():
    """Fig. 4 of Narayanan et al. 2021 with b as long as f; the drawing is the one in the module's docstring."""
    gpipe = simulate(all_ranks("gpipe", 4, 4), 1, 1).draw()
    assert gpipe == (
        "f0 f1 f2 f3 .. .. .. .. .. .. b0 b1 b2 b3\n"
        ".. f0 f1 f2 f3 .. .. .. .. b0 b1 b2 b3 ..\n"
        ".. .. f0 f1 f2 f3 .. .. b0 b1 b2 b3 .. ..\n"
        ".. .. .. f0 f1 f2 f3 b0 b1 b2 b3 .. .. .."
    )
    one = simulate(all_ranks("1f1b", 4, 4), 1, 1).draw()
    assert one == (
        "f0 f1 f2 f3 .. .. .. b0 .. b1 .. b2 .. b3\n"
        ".. f0 f1 f2 .. .. b0 f3 b1 .. b2 .. b3 ..\n"
        ".. .. f0 f1 .. b0 f2 b1 f3 b2 .. b3 .. ..\n"
        ".. .. .. f0 b0 f1 b1 f2 b2 f3 b3 .. .. .."
    )


def test_interleaved_by_hand():
    """Two ranks with two chunks each: stages 0 and 2, 1 and 3."""
    f, b = (lambda m, c: Action("forward", m, c)), (lambda m, c: Action("backward", m, c))
    assert schedule("interleaved", 2, 2, 0, 2) == [
        f(0, 0), f(1, 0), f(0, 1), f(1, 1), b(0, 1), b(1, 1), b(0, 0), b(1, 0)
    ]  # fmt: skip
    assert schedule("interleaved", 2, 2, 1, 2) == [
        f(0, 0), f(1, 0), f(0, 1), b(0, 1), f(1, 1), b(1, 1), b(0, 0), b(1, 0)
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
def test_bubble_is_the_formula(name, ranks, microbatches):
    for forward, backward in ((1, 1), (1, 2), (0.5, 3)):
        timeline = simulate(all_ranks(name, ranks, microbatches), forward, backward)
        assert timeline.bubble == pytest.approx((ranks - 1) / (microbatches + ranks - 1), abs=1e-12)
        assert timeline.bubble == pytest.approx(bubble_fraction(ranks, microbatches), abs=1e-12)
        assert timeline.seconds == pytest.approx((microbatches + ranks - 1) * (forward + backward))


@pytest.mark.parametrize(("ranks", "groups", "virtual"), list(itertools.product((1, 2, 3, 4), (1, 2, 3), (2, 3, 4))))
def test_interleaving_divides_the_time_of_the_bubble(ranks, groups, virtual):
    microbatches = ranks * groups
    plain = simulate(all_ranks("1f1b", ranks, microbatches), 1, 2)
    timeline = simulate(all_ranks("interleaved", ranks, microbatches, virtual), 1 / virtual, 2 / virtual)
    work = 3 * microbatches
    assert timeline.seconds - work == pytest.approx((plain.seconds - work) / virtual, abs=1e-9)
    assert timeline.bubble == pytest.approx(bubble_fraction(ranks, microbatches, virtual), abs=1e-12)


@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
def test_activations_that_are_kept(ranks, microbatches):
    for rank in range(ranks):
        assert most_live(schedule("gpipe", ranks, microbatches, rank)) == microbatches
        assert most_live(schedule("1f1b", ranks, microbatches, rank)) == min(ranks - rank, microbatches)
        for virtual in (2, 3):
            actions = schedule("interleaved", ranks, ranks * microbatches, rank, virtual)
            warmup = (ranks - rank - 1) * 2 + (virtual - 1) * ranks
            assert most_live(actions) == min(warmup + 1, ranks * microbatches * virtual)


@pytest.mark.parametrize(("ranks", "microbatches"), SIZES)
def test_every_chunk_goes_back_in_the_order_of_micro_batches(ranks, microbatches):
    cases = [("gpipe", microbatches, 1), ("1f1b", microbatches, 1)]
    cases += [("interleaved", ranks * microbatches, virtual) for virtual in (2, 3)]
    for (name, count, virtual), rank in itertools.product(cases, range(ranks)):
        actions = schedule(name, ranks, count, rank, virtual)
        assert len(actions) == 2 * count * virtual
        for kind, chunk in itertools.product(("forward", "backward"), range(virtual)):
            order = [a.microbatch for a in actions if (a.kind, a.chunk) == (kind, chunk)]
            assert order == list(range(count))


def test_a_slow_stage_and_slow_messages():
    """One micro-batch over three stages: everything is in a row."""
    timeline = simulate(all_ranks("1f1b", 3, 1), [1, 5, 2], [2, 7, 3], transfer=0.5)
    assert timeline.seconds == 1 + 5 + 2 + 2 + 7 + 3 + 4 * 0.5
    slow = simulate(all_ranks("gpipe", 2, 100), [1, 3], [2, 6])
    assert slow.bubble == pytest.approx(1 - 300 * (3 + 9) / 3 / (2 * slow.seconds))


def test_what_is_no_schedule_is_refused():
    good = all_ranks("1f1b", 2, 2)
    with pytest.raises(ValueError, match="rank 1 lacks the backward of micro-batch 1 through chunk 0"):
        simulate([good[0], good[1][:-1]])
    with pytest.raises(ValueError, match="rank 0 has the forward of micro-batch 0 through chunk 0 more than once"):
        simulate([[good[0][0], *good[0]], good[1]])
    with pytest.raises(ValueError, match="wait for each other: rank 0 before the backward.*rank 1 before the forward"):
        simulate([sorted(good[0], key=lambda a: a.kind), good[1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gpip", 2, 2, 0), "did you mean 'gpipe'"),
        (("gpipe", 2, 0, 0), "0 micro-batches"),
        (("1f1b", 2, 2, 2), "rank 2 of 2"),
        (("1f1b", 2, 2, 0, 2), "1f1b with virtual=2"),
        (("interleaved", 2, 2, 0, 1), "interleaved with virtual=1"),
        (("interleaved", 4, 6, 0, 2), "multiple of 4 micro-batches, one per rank; got 6, use 4 or 8"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        schedule(*arguments)
