"""The states of recurrent layers are those that their modules keep in the page store."""

from dataclasses import replace

import pytest
import torch

from groundup.inference.batch_cache import PageStore
from groundup.inference.decode.decoder import CompiledDecoder
from groundup.inference.decode.recurring import state_shapes
from groundup.inference.runner import Span, TorchRunner
from groundup.model import GatedLinearConfig
from tests.inference.decode.test_decoder import CONTEXT, MIXERS, PAGE, VARIANTS, config, shaken

RECURRENT = [name for name in VARIANTS if state_shapes(VARIANTS[name].block(0).mixer)]


def new_store(config):
    store = PageStore(config, 8, PAGE, 2, CONTEXT // PAGE)
    for row in range(2):
        store.place(row, 0, range(4 * row, 4 * row + 4))
    return store


@pytest.mark.parametrize("name", RECURRENT)
def test_a_sequence_goes_on_from_torchs_state_and_torch_from_ours(name):
    model = shaken(VARIANTS[name])
    store = new_store(model.config)
    torch_runner, prompt = TorchRunner(model, store), [3, 1, 4, 1, 5, 9, 2, 6]
    torch_runner.run([Span(prompt[:3], 0, [], 1, 1)])
    kept = [tuple(state.shape[1:]) for state in store.states[0]]
    assert kept == state_shapes(model.config.block(0).mixer)
    compiled = CompiledDecoder.build(model, store, "fp32")
    assert isinstance(compiled, CompiledDecoder)
    compiled.run([Span(prompt[3:5], 3, [], 1, 1)])
    torch_runner.run([Span(prompt[5:6], 5, [], 1, 1)])
    found = compiled.run([Span(prompt[6:], 6, [], 1, 1)])
    with torch.no_grad():
        torch.testing.assert_close(found[0], model(torch.tensor([prompt]))[0, -1], rtol=2e-5, atol=2e-5)


def test_a_row_that_begins_anew_has_nothing_of_the_one_before():
    model = shaken(config(MIXERS["gated delta"]))
    compiled = CompiledDecoder(model, new_store(model.config), "fp32")
    first = compiled.run([Span([7, 8, 9], 0, [], 0, 1)])
    compiled.run([Span([5], 3, [], 0, 1)])
    assert torch.equal(compiled.run([Span([7, 8, 9], 0, [], 0, 1)]), first)


def test_an_input_that_failed_leaves_states_as_they_were():
    model = shaken(config(MIXERS["mamba-2"]))
    store = new_store(model.config)
    compiled = CompiledDecoder(model, store, "fp32")
    compiled.run([Span([7, 8, 9], 0, [], 0, 1)])
    before = [state.clone() for layer in store.states for state in layer]
    with pytest.raises(ValueError, match="do not fit 64 positions"):
        compiled.run([Span([1], 3, [], 0, 1), Span([1, 2], CONTEXT - 1, [], 1, 1)])
    assert all(map(torch.equal, before, [state for layer in store.states for state in layer]))


def test_a_denominator_is_one_more_value():
    assert state_shapes(GatedLinearConfig(2, 4, 6)) == [(2, 4, 6)]
    assert state_shapes(replace(GatedLinearConfig(2, 4, 6), features="elu")) == [(2, 4, 7)]
