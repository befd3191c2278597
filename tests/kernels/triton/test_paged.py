"""Attention over pages in Triton against the reference: interpreted here, compiled where a GPU is.

Interpreted, a tile is 16 keys: four pages of four tokens.
"""

import importlib

import pytest
import torch

from groundup.inference.batch_cache import PageStore
from groundup.inference.runner import Span, TorchRunner
from groundup.kernels import backend, paged_attention
from tests.inference.small import model
from tests.kernels.test_paged import CASES
from tests.kernels.triton.ahead import Kernel, compile_ahead

pytest.importorskip("triton")
module = importlib.import_module("groundup.kernels.triton.paged")
few = importlib.import_module("groundup.kernels.triton._decode")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
PAGE = 4


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    if not torch.cuda.is_available():
        monkeypatch.setattr(few, "KEY_BLOCK", {2: 16, 4: 16})
        monkeypatch.setattr(module, "multiprocessors", lambda _: 6)


def store(device, dtype=torch.float32, lengths=(75, 18), q_seq=1, heads=4, kv_heads=2, d_head=16, d_value=None):
    """Rows of these lengths in a table for 80 tokens; pages in no order, and nothing finite behind a row's last one."""
    generator = torch.Generator().manual_seed(0)
    batch, pages = len(lengths), 20
    slots = (batch * pages + 1) * PAGE
    q = torch.randn(batch, q_seq, heads, d_head, generator=generator)
    keys = torch.randn(slots, kv_heads, d_head, generator=generator)
    values = torch.randn(slots, kv_heads, d_value or d_head, generator=generator)
    tables = torch.randperm(batch * pages, generator=generator).view(batch, pages)
    for row, length in enumerate(lengths):
        for page in tables[row, -(-length // PAGE) :].tolist():
            keys[page * PAGE : (page + 1) * PAGE], values[page * PAGE : (page + 1) * PAGE] = torch.nan, torch.nan
    positions = torch.tensor(lengths)[:, None] - torch.arange(q_seq, 0, -1)
    return *(x.to(device, dtype) for x in (q, keys, values)), positions.to(device), tables.to(device)


def hold(made, dtype=torch.float32, **options):
    """By the kernel as by the reference in float64, which must not see what is no number."""
    q, keys, values, positions, tables = made
    given = {n: x.to(q.device) if isinstance(x, torch.Tensor) else x for n, x in options.items()}
    with backend("triton"):
        got = paged_attention(q, keys, values, positions, tables, page_size=PAGE, **given)
    wide = {n: x.double() if isinstance(x, torch.Tensor) else x for n, x in given.items()}
    clean = [x.double().nan_to_num() for x in (q, keys, values)]
    expected = paged_attention.reference(*clean, positions, tables, page_size=PAGE, **wide)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_against_the_reference(device, case, dtype):
    made = store(device, dtype)
    hold(made, dtype, **CASES[case])


@pytest.mark.parametrize("case", ["plain", "everything"])
def test_several_queries_of_which_one_is_padding(device, case):
    made = store(device, lengths=(75, 18, 3), q_seq=3)
    made[3][2, 2] = -1
    hold(made, **CASES[case])


@pytest.mark.parametrize("lengths", [(1,), (16,), (17, 80), (0, 33)])
def test_awkward_lengths(device, lengths):
    """A row of none is padding, and gets zeros."""
    hold(store(device, lengths=lengths))
    hold(store(device, lengths=lengths), window=7, sink_tokens=5)


@pytest.mark.parametrize("shape", [(4, 4, 16, 16), (3, 1, 24, 40), (8, 2, 80, 16)])
def test_heads_and_widths(device, shape):
    heads, kv_heads, d_head, d_value = shape
    hold(store(device, heads=heads, kv_heads=kv_heads, d_head=d_head, d_value=d_value))


def test_strided_queries_and_tables_of_int32(device):
    q, keys, values, positions, tables = store(device)
    wide = torch.cat([q, q], 2)[:, :, :4]
    table = torch.cat([tables, tables], 1).int()[:, :20]
    assert not wide.is_contiguous() and not table.is_contiguous()
    hold((wide, keys, values, positions, table))
    hold((torch.stack([q, q], -1)[..., 0], keys, values, positions, tables.T.contiguous().T))


def test_pages_that_a_window_hides_are_never_read(device):
    """What is not a number there would show, as zero times it is none either."""
    made = store(device, lengths=(75, 40))
    clean = [made[0], made[1].clone(), made[2].clone(), *made[3:]]
    for page in made[4][:, 1:8].flatten().tolist():  # positions 4 to 31; tiles of 16 read 0 to 15 for the first tokens
        made[1][page * PAGE : (page + 1) * PAGE] = torch.nan
    with backend("triton"):
        got = paged_attention(*made, page_size=PAGE, window=8)
        assert torch.equal(got, paged_attention(*clean, page_size=PAGE, window=8)) and got.isfinite().all()


def test_an_empty_batch(device):
    q, keys, values, positions, tables = store(device)
    with backend("triton"):
        assert paged_attention(q[:0], keys, values, positions[:0], tables[:0], page_size=PAGE).shape == (0, 1, 4, 16)


def test_what_is_refused_and_why(device):
    q, keys, values, positions, tables = store(device)
    with backend("triton"):
        for streams, reason in (
            ((q.double(), keys.double(), values.double()), "float64"),
            ((q, keys, values.bfloat16()), "of one type"),
            ((q, keys[:, :, :8], values), "do not fit"),
            ((q[:, :, :3], keys, values), "do not fit"),
            ((q.repeat(1, 1, 1, 17), keys.repeat(1, 1, 17), values), "at most 256"),
            ((q.repeat(1, 33, 1, 1), keys, values), "66 queries"),
            ((q.clone().requires_grad_(), keys, values), "decoding has none"),
        ):
            at = positions.repeat(1, streams[0].shape[1])
            with pytest.raises(ValueError, match=reason):
                paged_attention(*streams, at, tables, page_size=PAGE)


def test_spans_and_bytes_by_hand():
    """1,000 keys in tiles of 64 are 16; eight lanes on 132 processors get 33 spans, of which no more than 16 exist."""
    assert module.span_count(1000, 64, 8, 132) == 16
    assert module.span_count(100_000, 64, 8, 132) == 33
    assert module.span_count(100_000, 64, 1000, 132) == module.span_count(1, 64, 1, 132) == 1
    # Five keys and values, a query and an output, of one channel and two bytes each.
    assert module.traffic_paged_attention(5, 1, 1, 1, 1, 1, 1, 2) == (5 + 1) * 2 * 2


@pytest.mark.parametrize("name", ["gqa", "sink_tokens"])
def test_a_pass_over_the_store_without_gathering(device, name):
    """The model's own forward pass on this kernel, three tokens after a prompt, against one that gathers."""
    page_store = PageStore(model(name).config, 8, PAGE, rows=2, row_pages=8)
    page_store.place(1, 0, [5, 2, 7, 0])
    ids = torch.arange(13).tolist()
    gathering = TorchRunner(model(name), page_store, in_place=False)
    gathering.run([Span(ids[:10], 0, [], 1, 0)])
    expected = gathering.run([Span(ids[10:], 10, [], 1, 3)])
    with backend("triton"):
        got = TorchRunner(model(name), page_store, in_place=True).run([Span(ids[10:], 10, [], 1, 3)])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("d_head", [64, 128, 192])
def test_real_sizes_on_a_gpu(d_head, dtype):
    for case in ("plain", "everything"):
        made = store("cuda", dtype, lengths=(75, 33, 80, 1), q_seq=1, d_head=d_head)
        hold(made, dtype, **CASES[case])


MASK = {"window": "i32", "softcap": "fp32", "slopes": "*fp32:16"}


def ahead(element, block, channels, given, sink_tokens=0, rows=16):
    signature = dict.fromkeys(["q", "keys", "values"], f"*{element}:16") | {"q_pos": "*i64:16", "tables": "*i32:16"}
    signature |= dict.fromkeys(["parts", "levels"], "*fp32:16") | dict.fromkeys(["q_seq", "kv_heads"], "i32")
    strides = ["table_row", "q_batch", "q_token", "q_head", "k_slot", "k_head", "v_slot", "v_head"]
    signature |= dict.fromkeys(strides, "i32:16") | {"scale": "fp32"} | given
    sizes = {"GROUPS": 4, "D": channels, "DV": channels, "ROWS": rows, "SINK_TOKENS": sink_tokens, "PAGE": 16}
    sizes |= {"BLOCK_D": channels, "BLOCK_DV": channels, "BLOCK_K": block, "PRECISION": "ieee"}
    return Kernel(
        "paged",
        "_pages",
        signature,
        dict.fromkeys(MASK.keys() - given.keys()) | sizes,
        warps=few.WARPS[4 if element == "fp32" else 2],
        stages=2,
    )


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
def test_compiled_for_a100_and_hopper_without_spills(architecture):
    """Plain, and with a window, first tokens, a soft cap and slopes; 16 rows of one query and 64 of several."""
    made = compile_ahead(
        [
            ahead("bf16", 64, 128, {}),
            ahead("bf16", 64, 128, MASK, sink_tokens=4),
            ahead("fp16", 64, 64, {}, rows=64),
            ahead("bf16", 64, 128, MASK, sink_tokens=4, rows=64),
            ahead("fp32", 32, 128, MASK, sink_tokens=4),
        ],
        architecture,
    )
    assert [kernel.spilled_bytes for kernel in made] == [0] * len(made), made
    assert all(kernel.registers <= 255 and kernel.shared_bytes <= 99 * 1024 for kernel in made), made
    assert all(kernel.warp_products + kernel.warpgroup_products > 0 for kernel in made[:4]), made
