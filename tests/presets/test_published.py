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
    assert round(count / model.rounded) * model.rounded == model.parameters


@pytest.mark.parametrize("name", presets.PUBLISHED)
def test_a_config_survives_json(name):
    config = presets.published(name)
    assert from_dict(ModelConfig, to_dict(config)) == config


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'llama-3-8b'"):
        presets.published("llama3-8b")


def test_five_local_layers_then_a_global_one():
    config = presets.published("gemma-3-1b")
    windows = [config.block(layer).mixer.window for layer in range(config.num_layers)]
    assert windows == ([512] * 5 + [None]) * 4 + [512] * 2
    thetas = {config.block(layer).mixer.rope.theta for layer in range(config.num_layers)}
    assert thetas == {1e4, 1e6}
