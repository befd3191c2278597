"""Decoding on a GPU without its host: a step's kernels are recorded once per size of batch and then replayed.

    sizes      1    2    4    8    16   32               a CUDA graph each, recorded when it is first needed
    5 spans              -> 8 rows: 5 real, 3 padding

A decode step is some hundreds of small kernels, and launching one from Python takes longer than many of them run. A
graph launches all with one call. It reads and writes the same addresses each time, so a `StepBuffers` holds tokens,
positions, slots and page tables of a size; what they hold is written before a replay. Nothing in the step may depend on
lengths other than through these: `kernels.paged_attention` reads on the device how far each row has come.

What cannot be recorded is refused with a reason, and torch's own passes do it: see `runner`.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from groundup.inference.batch_cache import InPlaceCache, PageStore
from groundup.inference.runner import Span, TorchRunner
from groundup.model import AttentionConfig, Transformer

log = logging.getLogger(__name__)

Step = Callable[[], Tensor]
"""Logits (rows, vocab) from what lies in the buffers."""

Record = Callable[[Step], Step]
"""Makes the replay of a step. What it returns is overwritten by the next replay."""


@dataclass(frozen=True)
class NoGraphs:
    """Why a model's steps are not recorded."""

    reason: str


def refusal(model: Transformer, store: PageStore) -> NoGraphs | None:
    """What stands against recording this model's steps over this store, or None."""
    if store.device.type != "cuda":
        return NoGraphs(f"graphs are recorded on CUDA devices, and the pages are on {store.device}")
    return _unfit(model, store)


def _unfit(model: Transformer, store: PageStore) -> NoGraphs | None:
    """The same, of what does not depend on the device."""
    if store.gathers_only:
        return NoGraphs("pages in a form of their own are gathered, which depends on how long the sequences are")
    for layer in range(model.config.num_layers):
        mixer = model.config.block(layer).mixer
        if not isinstance(mixer, AttentionConfig):
            return NoGraphs(f"layer {layer} has {type(mixer).__name__}, and only attention reads pages in place")
        if mixer.alibi:
            return NoGraphs(f"layer {layer} copies its slopes from the host (ALiBi) in each step")
    return None


class StepBuffers:
    """The fixed addresses of a step of `size` rows: what a `SpanBatch` is for a pass, for one token of each row.

    Rows beyond the spans have position -1: no query of theirs sees anything, and what they would store is replaced by
    zeros, in the page that nobody gets.
    """

    def __init__(self, store: PageStore, size: int) -> None:
        self.store, self.size, self.in_place = store, size, True
        device, spare = store.device, store.num_pages
        self.tokens = torch.zeros(size, 1, dtype=torch.long, device=device)
        self.positions = torch.full((size, 1), -1, device=device)
        self.slots = torch.full((size,), spare * store.page_size, device=device)
        self.table = torch.full((size, store.tables.shape[1]), spare, dtype=torch.int32, device=device)

    def fill(self, spans: Sequence[Span]) -> None:
        """Put these spans of one token into the first rows, and padding into the others."""
        store, spare = self.store, self.size - len(spans)
        assert spare >= 0 and all(len(span.tokens) == 1 for span in spans), "one token of each, at most `size` of them"
        starts = torch.tensor([span.start for span in spans] + [-1] * spare)
        tables = torch.full(self.table.shape, store.num_pages, dtype=torch.int32)
        tables[: len(spans)] = torch.from_numpy(store.tables[[span.slot for span in spans]]).int()
        at = starts.clamp(min=0)
        pages = tables.long().gather(1, at[:, None] // store.page_size)[:, 0]
        self.tokens.copy_(torch.tensor([span.tokens for span in spans] + [[0]] * spare))
        self.positions.copy_(starts[:, None])
        self.slots.copy_(pages * store.page_size + at % store.page_size)
        self.table.copy_(tables)

    def caches(self) -> list["StepCache"]:
        """One per layer."""
        return [StepCache(self, layer) for layer in range(len(self.store.mixers))]


class StepCache(InPlaceCache):
    """What one layer sees of `StepBuffers`."""

    batch: StepBuffers  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, batch: StepBuffers, layer: int) -> None:
        self.batch, self.layer = batch, layer

    @property
    def length(self) -> int:
        return 1  # how many there are is known on the device only; not none

    def _write(self, streams: Sequence[Tensor]) -> None:
        is_real = self.batch.positions >= 0
        flat = [torch.where(is_real[..., None], new.flatten(2), 0).view(-1, *new.shape[2:]) for new in streams]
        self.batch.store.write(self.layer, self.batch.slots, flat)


class GraphRunner:
    """Runs spans of one token by replaying a recorded step.

    A graph keeps its intermediate results, so the first run of a size allocates; all graphs share one pool. Record it
    again after weights have moved. A step that cannot be recorded after all is run by torch from then on.
    """

    def __init__(self, model: Transformer, store: PageStore, record: Record | None = None) -> None:
        self.model, self.store = model, store
        self.sizes = batch_sizes(store.rows)
        self._record = CudaRecorder() if record is None else record
        self._steps: dict[int, tuple[StepBuffers, Step]] = {}
        self._torch = TorchRunner(model, store)
        self._failed = False

    @classmethod
    def build(cls, model: Transformer, store: PageStore) -> "GraphRunner | NoGraphs":
        """The runner of a model over a store, or why there is none."""
        return refusal(model, store) or cls(model, store)

    @torch.no_grad()
    def run(self, spans: Sequence[Span]) -> Float[Tensor, "wanted vocab"]:
        """Logits of each span's token, in float32."""
        if self._failed:
            return self._torch.run(spans)
        size = next(size for size in self.sizes if size >= len(spans))
        try:
            buffers, step = self._steps.get(size) or self._new_step(size, spans)
        except RuntimeError as failure:
            self._failed = True
            log.warning("decoding without CUDA graphs: %s", str(failure).strip().splitlines()[0])
            return self._torch.run(spans)
        buffers.fill(spans)
        return step()[: len(spans)].clone()

    def _new_step(self, size: int, spans: Sequence[Span]) -> tuple[StepBuffers, Step]:
        """Recorded over the spans at hand: what recording stores for them is what the replay will."""
        buffers = StepBuffers(self.store, size)
        buffers.fill(spans)

        def step() -> Tensor:
            hidden = self.model.hidden(buffers.tokens, buffers.positions, buffers.caches())
            return self.model.logits(hidden[:, 0])

        self._steps[size] = buffers, self._record(step)
        return self._steps[size]


class CudaRecorder:
    """`Record` by a CUDA graph. A step runs twice before, on a side stream, for kernels to be compiled and tried."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Step) -> Step:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            out = step()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


def batch_sizes(most: int) -> list[int]:
    """Powers of two up to the first that is at least `most`, which takes its place.

    >>> batch_sizes(6), batch_sizes(1)
    ([1, 2, 4, 6], [1])
    """
    return [1 << i for i in range(most.bit_length()) if 1 << i < most] + [most]
