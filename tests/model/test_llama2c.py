"""llama2.c's models, held to its forward pass written out in NumPy, and to what its stories model tells."""

import struct

import numpy as np
import pytest
import torch

from groundup.model.llama2c import load_llama2c, read_config
from tests.model.models import path_of

SIZES = {"dim": 24, "hidden_dim": 40, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 31, "seq_len": 16}


def parts_of(sizes):
    """(name, shape) of everything behind the sizes, in the order of run.c."""
    dim, hidden, layers = sizes["dim"], sizes["hidden_dim"], sizes["n_layers"]
    vocab, head = sizes["vocab_size"], sizes["dim"] // sizes["n_heads"]
    kv, angles = sizes["n_kv_heads"] * head, (sizes["seq_len"], head // 2)
    yield "embed", (abs(vocab), dim)
    yield "att_norm", (layers, dim)
    yield from (("wq", (layers, dim, dim)), ("wk", (layers, kv, dim)), ("wv", (layers, kv, dim)))
    yield from (("wo", (layers, dim, dim)), ("ffn_norm", (layers, dim)))
    yield from (("w1", (layers, hidden, dim)), ("w2", (layers, dim, hidden)), ("w3", (layers, hidden, dim)))
    yield from (("norm", (dim,)), ("cos", angles), ("sin", angles))
    if vocab < 0:
        yield "head", (-vocab, dim)


def read(data):
    """(sizes, weights) of a file, as run.c maps it."""
    sizes = dict(zip(SIZES, struct.unpack("<7i", data[:28]), strict=True))
    values, at, weights = np.frombuffer(data[28 : len(data) // 4 * 4], "<f4"), 0, {}
    for name, shape in parts_of(sizes):
        count = int(np.prod(shape))
        weights[name] = values[at : at + count].reshape(shape).astype(np.float64)
        at += count
    return sizes, weights


def forward(sizes, w, tokens):
    """Logits after each token: run.c's forward(), position by position, with its interleaved rotary pairs."""
    heads, kv_heads, d = sizes["n_heads"], sizes["n_kv_heads"], sizes["dim"] // sizes["n_heads"]
    keys, values = [[] for _ in w["wq"]], [[] for _ in w["wq"]]
    return np.array([_step(w, heads, kv_heads, d, keys, values, t, pos) for pos, t in enumerate(tokens)])


def _step(w, heads, kv_heads, d, keys, values, token, pos):
    x = w["embed"][token].copy()
    for i in range(len(w["wq"])):
        h = _norm(x, w["att_norm"][i])
        q = _turned((w["wq"][i] @ h).reshape(heads, d), pos)
        keys[i].append(_turned((w["wk"][i] @ h).reshape(kv_heads, d), pos))
        values[i].append((w["wv"][i] @ h).reshape(kv_heads, d))
        out = []
        for head in range(heads):
            group = head // (heads // kv_heads)
            scores = np.array([q[head] @ k[group] for k in keys[i]]) / d**0.5
            weights = np.exp(scores - scores.max())
            out.append(sum(a * v[group] for a, v in zip(weights / weights.sum(), values[i], strict=True)))
        x += w["wo"][i] @ np.concatenate(out)
        h = _norm(x, w["ffn_norm"][i])
        gate = w["w1"][i] @ h
        x += w["w2"][i] @ (gate / (1 + np.exp(-gate)) * (w["w3"][i] @ h))
    return w.get("head", w["embed"]) @ _norm(x, w["norm"])


def _norm(x, weight):
    return x / np.sqrt((x * x).mean() + 1e-5) * weight


def _turned(x, pos):
    out, d = x.copy(), x.shape[-1]
    for i in range(0, d, 2):
        angle = pos * 10_000.0 ** (-i / d)
        out[:, i] = x[:, i] * np.cos(angle) - x[:, i + 1] * np.sin(angle)
        out[:, i + 1] = x[:, i] * np.sin(angle) + x[:, i + 1] * np.cos(angle)
    return out


def file_of(**changes):
    sizes = SIZES | changes
    random = np.random.default_rng(0)
    values = [random.standard_normal(shape).astype("<f4") * 0.3 for _, shape in parts_of(SIZES | changes)]
    return struct.pack("<7i", *sizes.values()) + b"".join(value.tobytes() for value in values)


@pytest.mark.parametrize("changes", [{}, {"vocab_size": -31}, {"n_kv_heads": 4}, {"n_kv_heads": 1, "seq_len": 9}])
def test_the_logits_of_run_c(tmp_path, changes):
    data = file_of(**changes)
    (tmp_path / "m.bin").write_bytes(data + b"a tokenizer may follow")
    model = load_llama2c(tmp_path / "m.bin")
    assert model.config.tie_embeddings == (changes.get("vocab_size", 1) > 0)
    tokens = [1, 30, 4, 4, 17, 0, 9]
    with torch.no_grad():
        logits = model(torch.tensor([tokens]))[0].double().numpy()
    np.testing.assert_allclose(logits, forward(*read(data), tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim=0; expected a number from 1"),
        ({"dim": -24}, "dim=-24"),
        ({"dim": 2**31 - 1}, "dim=2147483647; expected a number from 1 to"),
        ({"n_layers": 2**31 - 1}, "n_layers=2147483647"),
        ({"vocab_size": -(2**31)}, "vocab_size=2147483648"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"seq_len": 10_000}, "its sizes ask for [0-9]+ bytes, the file has"),
        ({"n_heads": 5}, "dim=24 is not divisible by n_heads=5"),
        ({"n_kv_heads": 3}, "num_kv_heads=3 does not divide num_heads=4"),
        ({"n_heads": 8}, "d_head=3 is odd"),
        ({"hidden_dim": 41}, "its sizes ask for"),
    ],
)
def test_sizes_that_are_not_the_files(tmp_path, changes, message):
    path = tmp_path / "m.bin"
    path.write_bytes(struct.pack("<7i", *(SIZES | changes).values()) + file_of()[28:])
    with pytest.raises(ValueError, match=message) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "m.bin"
    for data, message in (
        (b"", "0 bytes; a llama2.c model begins with"),
        (b"24ka" + bytes(300), "version 1 or 2; only version 0 is read"),
        (file_of()[:-1], "its sizes ask for"),
        (b"PK\x03\x04" + bytes(100), "expected a number from 1 to 104"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            load_llama2c(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite(tmp_path, value):
    data = bytearray(file_of())
    data[28:32] = np.array(value, "<f4").tobytes()
    (tmp_path / "m.bin").write_bytes(data)
    with pytest.raises(ValueError, match="1 tensors hold NaN or infinity: embed.weight"):
        load_llama2c(tmp_path / "m.bin")


def test_the_tables_of_angles_are_not_read(tmp_path):
    data = bytearray(file_of())
    data[-4:] = np.array(np.nan, "<f4").tobytes()
    (tmp_path / "m.bin").write_bytes(data)
    assert load_llama2c(tmp_path / "m.bin").config.context_length == 16


@pytest.mark.slow
def test_the_published_stories_model():
    """Its greedy story; the ids are pinned, and the logits of the first of them are run.c's."""
    path = path_of("stories15M.bin")
    model = load_llama2c(path).eval()
    ids = [1]
    with torch.no_grad():
        for _ in range(24):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        logits = model(torch.tensor([ids]))[0].double().numpy()
    assert ids[1:] == STORY
    np.testing.assert_allclose(logits, forward(*read(path.read_bytes()), ids), rtol=1e-4, atol=1e-4)


# "Once upon a time, there was a little girl named Lily. She loved to play outside in the sunshine."
STORY = [9038, 2501, 263, 931, 29892, 727, 471, 263, 2217, 7826, 4257, 365, 2354, 29889, 2296, 18012, 304, 1708, 5377,
         297, 278, 6575, 845, 457]  # fmt: skip
