import pytest

from groundup.scaling import AblationSettings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"d_model": 0}, "d_model=0"),
        ({"vocab_size": 10}, "vocab_size=10"),
        ({"seeds": 1}, "at least 2: one run says nothing"),
        ({"rates": ()}, "rates="),
        ({"rates": (0.1, 2.0)}, "between 0 and 1"),
        ({"tune_share": 1.5}, "tune_share=1.5"),
        ({"held_out_fraction": 0.0}, "held_out_fraction"),
        ({"budget_seconds": float("inf")}, "budget_seconds"),
        ({"steps": 1}, "steps=1"),
        ({"lengths": (1, 0)}, r"lengths=\[1, 0\]: expected different multiples"),
        ({"lengths": (2, 2)}, "expected different multiples"),
        ({"lengths": (1, 2), "scalings": ("yarm",)}, "'yarm' is unknown; did you mean 'yarn'"),
        ({"scalings": ("yarn",)}, r"give lengths=\[1,2,4\] too"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        AblationSettings(**options)


def test_the_middle_rate_and_when_none_is_chosen():
    assert AblationSettings(rates=(0.03, 0.001, 0.01)).middle_rate == 0.01
    assert AblationSettings(tune_share=0.0).tuned_rates == ()
    assert AblationSettings(rates=(0.1,)).tuned_rates == ()
