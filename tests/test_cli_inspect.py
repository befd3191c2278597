"""`groundup inspect`."""

import json

import pytest
import torch

from groundup.cli import main
from groundup.tensorfile import write_tensors


def test_strides_of_a_tensor(capsys):
    assert main(["inspect", "tensor", "2,2", "transpose=0,1", "view=4"]) == 0
    shown = capsys.readouterr().out
    assert "(2, 1)" in shown
    assert "(1, 2)" in shown
    assert "view=4 was refused: no stride walks through axes 0 and 1" in shown
    assert main(["inspect", "tensor", "2,2", "transpose=0,1", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)
    assert [step["memory"]["strides"] for step in steps] == [[2, 1], [1, 2]]


def test_number_types(capsys):
    assert main(["inspect", "dtypes", "1e-8"]) == 0
    assert "1e-08 becomes" in capsys.readouterr().out
    assert main(["inspect", "dtypes", "1e-8", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["fp16"]["stores"] == [0.0]
    assert rows["fp8 e4m3"]["largest"] == 448


def test_what_is_too_large_for_a_type_is_a_word_in_json(capsys):
    assert main(["inspect", "dtypes", "1e9", "nan", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["fp16"]["stores"] == ["inf", "nan"]
    assert rows["fp32"]["stores"] == [1e9, "nan"]


def test_a_negative_number_of_tensors_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["inspect", "absent", "--tensors", "-1"])
    assert "expected 0 or more, not -1" in capsys.readouterr().err


def test_a_file(tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {f"w{i}": torch.zeros(3, 2) for i in range(4)})
    assert main(["inspect", str(path), "--tensors", "2"]) == 0
    shown = capsys.readouterr().out
    assert "3 x 2" in shown
    assert "and 2 tensors more; --tensors 4 shows all" in shown
    assert main(["inspect", str(path), "--json", "--verify"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parts"] == {"": [4, 24, 96]}
    assert len(found["files"][0][2]) == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tensor"], "give a shape, as in: groundup inspect tensor 2,2"),
        (["tensor", "2x2"], "'2x2' is no shape; write it as 4,4"),
        (["dtypes", "small"], "'small' is no number, such as 1e-8"),
        (["absent"], "absent: nothing is there"),
        (["absent", "more"], "'more': nothing more is expected after a path"),
    ],
)
def test_wrong_use(words, message, capsys):
    assert main(["inspect", *words]) == 1
    assert message in capsys.readouterr().err
