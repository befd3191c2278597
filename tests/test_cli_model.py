"""`groundup import` and `groundup export`, as a user calls them."""

import json

import pytest

from groundup.cli import main
from groundup.cli_model import _bytes
from groundup.model import Transformer
from groundup.model.gguf import save_gguf
from groundup.model.source import Source, read_source, write_folder
from groundup.tokenizer import Tokenizer
from tests.model.models import shaken
from tests.model.test_llama2c import file_of
from tests.model.test_source import CONFIG, SPECIAL


@pytest.fixture
def folder(tmp_path):
    tokenizer = Tokenizer.train_from_iterator(["the cat in the hat"] * 9, 270, SPECIAL)
    write_folder(Source(shaken(Transformer(CONFIG)), tokenizer), tmp_path / "model")
    return tmp_path / "model"


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_out_as_gguf_and_in_again(folder, capsys):
    file, back = folder.with_name("m.gguf"), folder.with_name("back")
    code, out, _ = run(capsys, "export", folder, "--to", "gguf", "--dtype", "f32", "--out", file, "--json")
    result = json.loads(out.splitlines()[-1])
    assert code == 0
    assert result["logits"] == 0 and result["greedy_agrees"] is True and result["bytes"] == file.stat().st_size
    code, out, _ = run(capsys, "import", file, "--out", back, "--max-shard-size", "20KB")
    assert code == 0 and "logits off by 0 at most" in out and "greedy tokens agree" in out
    assert (back / "model.safetensors.index.json").exists()


@pytest.mark.parametrize(("dtype", "bound"), [("f16", 0.05), ("bf16", 0.4), ("q8_0", 0.4)])
def test_fewer_bits_are_a_little_off(folder, capsys, dtype, bound):
    file = folder.with_name("m.gguf")
    code, out, _ = run(capsys, "export", folder, "--to", "gguf", "--dtype", dtype, "--out", file, "--json")
    assert code == 0
    assert 0 < json.loads(out.splitlines()[-1])["logits"] < bound


def test_the_name_of_a_gguf_file_is_chosen(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    code, out, _ = run(capsys, "export", "model", "--to", "gguf")
    assert code == 0 and (folder.parent / "model-f16.gguf").exists()
    assert out.splitlines()[-1].startswith("model-f16.gguf: read back; on ")


def test_llama2c_comes_in(tmp_path, capsys):
    (tmp_path / "stories.bin").write_bytes(file_of())
    code, out, _ = run(capsys, "import", tmp_path / "stories.bin", "--out", tmp_path / "m")
    assert code == 0 and "no tokenizer" in out
    assert read_source(tmp_path / "m").model.config.d_model == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "MODEL", "--out", "MODEL"], "is there already, and is not overwritten"),
        (["import", "nothing", "--out", "new"], "nothing: No such file"),
        (["export", "MODEL", "--to", "hf"], "--out: name the folder to write"),
        (["export", "MODEL", "--to", "hf", "--out", "new", "--dtype", "q8_0"], "dtype 'q8_0': a folder holds one of"),
        (["export", "MODEL", "--to", "gguf", "--out", "n.gguf", "--max-shard-size", "1GB"], "written in one piece"),
        (["import", "MODEL", "--out", "new", "--max-shard-size", "many"], "'many': expected a size such as 500MB"),
    ],
)
def test_mistakes_are_named(folder, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(folder.parent)
    code, _, err = run(capsys, *["model" if word == "MODEL" else word for word in arguments])
    assert code == 1 and message in err and "\n" not in err.strip()
    assert not (folder.parent / "new").exists() and not (folder.parent / "n.gguf").exists()


def test_a_model_that_reads_back_as_another_is_an_error(folder, capsys, monkeypatch):
    """A defect put in: the file that is written is that of a model with other weights."""
    other, file = shaken(Transformer(CONFIG), seed=5), folder.with_name("m.gguf")
    monkeypatch.setattr("groundup.model.source.save_gguf", lambda model, *rest: save_gguf(other, *rest))
    code, out, err = run(capsys, "export", folder, "--to", "gguf", "--dtype", "f32", "--out", file)
    assert code == 1 and "greedy tokens DIFFER" in out and "is not the model that was read" in err


@pytest.mark.parametrize(
    ("text", "size"), [(None, None), ("5", 5), ("2GB", 2 * 10**9), ("1.5 kib", 1536), ("20MB", 20_000_000)]
)
def test_sizes(text, size):
    assert _bytes(text) == size


@pytest.mark.parametrize("text", ["0", "-1GB", "GB", "1TB", "0.0001KB"])
def test_sizes_that_are_none(text):
    with pytest.raises(ValueError, match="expected a size such as"):
        _bytes(text)
