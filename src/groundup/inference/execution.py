"""What runs the spans of a step: the model over its page store, through torch or a faster decoder.

    spans -- a decoder that takes prompts --------------------> logits
      |----- spans of one token, where there is a decoder ---->   |
      '----- all others, through torch ----------------------->   '

Parts are made when the first request comes. They are made again when the model has moved, computes in another type or
has new weights.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from groundup.inference.batch_cache import PageStore, bytes_per_token
from groundup.inference.graphs import GraphRunner
from groundup.inference.quantized_pages import QuantizedPageStore, check_format, quantized_bytes_per_token
from groundup.inference.runner import InvariantRunner, Runner, Span, TorchRunner
from groundup.model import Transformer

log = logging.getLogger(__name__)

WATCHED = 16
"""Parameters of which a few numbers are compared, to notice new weights."""

DecoderBuilder = Callable[[Transformer, PageStore], Any]
"""Makes a `Runner` for spans of one token, or an object with the `reason` why it does not.

Where none is given, steps are recorded on a GPU, see `graphs`. A runner with `takes_prompts` true gets all spans, and
has weights of its own: nobody tells the modules that it is inference. One with `batch_invariant` true as well promises
that a token's logits depend on nothing but the tokens before it, bit for bit. One that also has a method
`most_likely` finds these tokens itself, see `Execution.most_likely`.
"""


class Execution:
    """A model, a store of pages, and what runs spans over both.

    dtype: the activations' type while running; None for the model's own.
    cache_format: of keys and values in eight bits, see `quantized_pages`; None for the activations' type.
    keeps_states: whether what the head read is kept, for which all passes go through torch.

    Raises ValueError for an unknown cache_format.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        dtype: torch.dtype | None,
        cache_format: str | None,
        batch_invariant: bool,
        keeps_states: bool,
        decoder: DecoderBuilder | None,
    ) -> None:
        if cache_format is not None:
            check_format(cache_format)
        self.model, self.dtype, self.cache_format = model, dtype, cache_format
        self.batch_invariant, self.keeps_states, self.decoder = batch_invariant, keeps_states, decoder
        self.store: PageStore
        self.runner: TorchRunner | InvariantRunner
        self.fast: Runner | None = None
        self._asked = False
        self._weights: tuple[Any, ...] | None = None
        self._modules: list[torch.nn.Module] = []

    @property
    def activations(self) -> torch.dtype:
        """Their type while running."""
        return self.model.compute_dtype if self.dtype is None else self.dtype

    @property
    def bytes_per_token(self) -> int:
        """That the store takes for a token of one sequence."""
        config = self.model.config
        if self.cache_format is not None:
            return quantized_bytes_per_token(config)
        return bytes_per_token(config, self.activations)

    def refresh(self, pages: int, page_size: int, rows: int, row_pages: int) -> Literal["store", "weights"] | None:
        """Look whether the parts are still right. What was made again: all with a new store, or what has weights."""
        weights = self._watch()
        if self._weights is not None and _same(self._weights, weights):
            return None
        has_moved = self._weights is None or self._weights[:2] != weights[:2]
        self._weights = weights
        self._modules = list(self.model.modules())
        self.fast, self._asked = None, False
        if not has_moved:
            return "weights"
        kind = PageStore if self.cache_format is None else partial(QuantizedPageStore, self.cache_format)
        self.store = kind(self.model.config, pages, page_size, rows, row_pages, self.activations, self.model.device)
        self.runner = (InvariantRunner if self.batch_invariant else TorchRunner)(self.model, self.store)
        if isinstance(self.runner, TorchRunner):
            self.runner.keeps_states = self.keeps_states
        return "store"

    def run(self, spans: list[Span]) -> list[Tensor | Exception]:
        """Each span's logits, or the exception that it caused.

        A part that raises is run again span by span. Others are not: a recurrent state would go on twice.
        """
        fast = self.fast_decoder()
        if fast is not None and getattr(fast, "takes_prompts", False):
            return _attempt(fast, spans)
        results: list[Tensor | Exception] = [torch.empty(0)] * len(spans)
        with self.as_for_inference():
            for runner, part in self._parts(fast, spans):
                for i, result in zip(part, _attempt(runner, [spans[i] for i in part]), strict=True):
                    results[i] = result
        return results

    def most_likely(self, spans: list[Span], vocab_size: int) -> list[int] | None:
        """The most likely of the first `vocab_size` tokens at each wanted place, where a decoder finds it itself: -1
        for logits that are NaN or infinite. None where `run` has to be asked."""
        fast = self.fast_decoder()
        search = getattr(fast, "most_likely", None)
        if search is None or not getattr(fast, "takes_prompts", False):
            return None
        try:
            return search(spans, vocab_size)
        except Exception:  # whose fault it is, `run` finds out
            return None

    def states(self, slot: int) -> Float[Tensor, "seq d_model"] | None:
        """What the head read of the newest span of this slot, where that is kept."""
        return self.runner.states[slot] if self.keeps_states and isinstance(self.runner, TorchRunner) else None

    def fast_decoder(self) -> Runner | None:
        """The decoder, made when it is first asked for; None where there is none, or it refuses."""
        builder = self._builder()
        if builder is not None and not self._asked:
            self._asked = True
            with self.as_for_inference():
                built = builder(self.model, self.store)
            if not hasattr(built, "run"):
                log.log(logging.WARNING if self.decoder else logging.INFO, "decoding through torch: %s", built.reason)
            elif self.batch_invariant and not getattr(built, "batch_invariant", False):
                log.warning("decoding through torch: the decoder's rows depend on each other or on torch's prefill")
            else:
                self.fast = built
        return self.fast

    @contextlib.contextmanager
    def as_for_inference(self) -> Iterator[None]:
        """The modules in evaluation mode and the model in the type of running, and both as they were afterwards."""
        training = [module for module in self._modules if module.training]
        dtype = self.model.compute_dtype
        try:
            for module in training:
                module.training = False
            self.model.compute_dtype = self.activations
            yield
        finally:
            self.model.compute_dtype = dtype
            for module in training:
                module.training = True

    def _parts(self, fast: Runner | None, spans: list[Span]) -> Iterator[tuple[Runner, list[int]]]:
        """Who runs which spans, by their numbers. In fixed tiles each sequence runs by itself anyway."""
        alone = [i for i, s in enumerate(spans) if fast is not None and len(s.tokens) == s.wanted == 1]
        others = [i for i in range(len(spans)) if i not in alone]
        if fast is not None and alone:
            yield fast, alone
        for part in [[i] for i in others] if isinstance(self.runner, InvariantRunner) else [others] * bool(others):
            yield self.runner, part

    def _builder(self) -> DecoderBuilder | None:
        """What was asked for; on a GPU, unless bits are to be the same in any company, recorded steps. Nothing where
        the model's states are kept."""
        if self.keeps_states:
            return None
        if self.decoder is None and self.model.device.type == "cuda" and not self.batch_invariant:
            return GraphRunner.build
        return self.decoder

    def _watch(self) -> tuple[Any, ...]:
        """What tells these weights from others: versions, places, and numbers from some of the parameters.

        Versions count writes through torch, and numbers show those of kernels.
        """
        parameters = list(self.model.parameters())
        some = parameters[:: -(-len(parameters) // WATCHED)]
        numbers = torch.cat([p.detach().reshape(-1)[: WATCHED // 2].double() for p in some])
        places = [(p.data_ptr(), p._version) for p in parameters]
        return (self.model.device, self.activations, places, numbers)


def _attempt(runner: Runner, spans: list[Span]) -> list[Tensor | Exception]:
    try:
        logits = runner.run(spans)
        return list(logits.split([span.wanted for span in spans])) if len(spans) > 1 else [logits]
    except Exception as failure:
        if len(spans) == 1:
            return [failure]
    return [result for span in spans for result in _attempt(runner, [span])]


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return a[:3] == b[:3] and torch.equal(a[3], b[3])
