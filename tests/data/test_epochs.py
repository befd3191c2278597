"""The value of repetition, against the published curve."""

import numpy as np
import pytest

from groundup.data import effective_tokens


def test_up_to_one_epoch_everything_counts():
    assert effective_tokens(1000, 0.25) == 250
    assert effective_tokens(1000, 1) == 1000


def test_the_published_points():
    """Muennighoff et al. 2023: 4 epochs are almost as good as new data; value is gone at about 40."""
    assert effective_tokens(1.0, 4) / 4 == pytest.approx(0.93, abs=0.01)
    assert effective_tokens(1.0, 1 + 15.387756) == pytest.approx(1 + 15.387756 * (1 - np.exp(-1)))
    assert effective_tokens(1.0, 1000) == pytest.approx(16.387756)


def test_more_passes_are_worth_more_but_less_each():
    worth = np.array([effective_tokens(1.0, e) for e in range(0, 100)])
    gains = np.diff(worth)
    assert (gains > 0).all() and (np.diff(gains) <= 1e-12).all()
    assert (worth <= np.arange(100)).all()


def test_negative_numbers():
    with pytest.raises(ValueError, match="negative"):
        effective_tokens(-1, 2)
