"""Every published model has the number of parameters that its authors say."""

import pytest

from groundup import presets
from groundup.accounting import count_parameters
from groundup.config import from_dict, to_dict
from groundup.model import ModelConfig


@pytest.mark.parametrize("name", presets.PUBLISHED)
def test_parameters_are_as_published(name):
    model = presets.PUBLISHED[name]
    count = getattr(count_parameters(model.make()), model.counted)
    assert rounded(count, model.rounded) == model.parameters


@pytest.mark.parametrize("name", presets.PUBLISHED)
def test_a_config_survives_json(name):
    config = presets.published(name)
    assert from_dict(ModelConfig, to_dict(config)) == config


def rounded(count, to):
    return round(count / to) * to


@pytest.mark.parametrize("name", [name for name, model in presets.PUBLISHED.items() if model.active])
def test_what_a_token_meets_is_as_published(name):
    model = presets.PUBLISHED[name]
    count = count_parameters(model.make())
    met = count.active if model.active_with_table else count.active - count.embedding
    assert rounded(met, model.active_rounded) == model.active
    assert met < count.total / 2


def test_deepseek_v3_to_the_last_parameter():
    """Its files hold 671,026,419,200, of which the 58 balancing biases of 256 are a buffer here."""
    assert count_parameters(presets.published("deepseek-v3")).total + 58 * 256 == 671_026_419_200


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'llama-3-8b'"):
        presets.published("llama3-8b")


def test_five_local_layers_then_a_global_one():
    config = presets.published("gemma-3-1b")
    windows = [config.block(layer).mixer.window for layer in range(config.num_layers)]
    assert windows == ([512] * 5 + [None]) * 4 + [512] * 2
    thetas = {config.block(layer).mixer.rope.theta for layer in range(config.num_layers)}
    assert thetas == {1e4, 1e6}
