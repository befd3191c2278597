"""What a recipe says, and that the table's are what their sources have."""

from dataclasses import replace

import pytest

from groundup.accounting import count_parameters
from groundup.config import from_dict, override, to_dict
from groundup.recipes import RECIPES, Recipe, find


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_json(name):
    recipe = RECIPES[name]
    assert from_dict(Recipe, to_dict(recipe)) == recipe


def test_the_sizes_are_those_of_the_public_results():
    """CS336's assignment counts about 17 M parameters beside the embedding, and 327,680,000 or 40 M tokens."""
    stories = RECIPES["tinystories-gpu"].model
    tables = 2 * stories.vocab_size * stories.d_model
    assert (count_parameters(stories).total - tables) / 1e6 == pytest.approx(12.5, abs=0.1)
    assert (count_parameters(stories).total - tables / 2) / 1e6 == pytest.approx(17.6, abs=0.1)
    assert RECIPES["tinystories-cpu"].model == stories
    assert RECIPES["tinystories-gpu"].tokens == 327_680_000
    assert find("tinystories-cpu").steps == 5000
    # nanoGPT's model for a GPU: 6 layers of width 384, "10.65 M parameters".
    assert count_parameters(RECIPES["tinyshakespeare-gpu"].model).total / 1e6 == pytest.approx(10.8, abs=0.2)


def test_what_is_not_measured_says_so():
    assert RECIPES["openwebtext-90m"].outcome == "recipe, not yet measured"
    assert replace(RECIPES["openwebtext-90m"], measured="3.1 on a toaster").outcome == "3.1 on a toaster"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["tokens=100"], "exactly one says when the run ends"),
        (["minutes=null"], "exactly one"),
        (["minutes=0"], "minutes=0.0; expected more than 0"),
        (["dropout=1.0"], "dropout=1.0"),
        (["decay=0"], "decay=0.0; expected a share"),
        (["tail=-0.1"], "tail=-0.1"),
        (["model.vocab_size=256"], "at least 257"),
        (["batch_sise=3"], "did you mean"),
    ],
)
def test_numbers_that_cannot_be_are_refused(words, reason):
    with pytest.raises(ValueError, match=reason):
        override(RECIPES["tinyshakespeare-cpu"], *words)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'tinystories-cpu'"):
        find("tinystory-cpu")
