"""Configurations survive JSON, and mistakes are answered with the path and the nearest name."""

import dataclasses
import doctest
import inspect
import json
from dataclasses import dataclass
from typing import Literal

import pytest

from groundup import config
from groundup.build.settings import BuildSettings
from groundup.config import declared, from_dict, near, nearest, override, parse_seconds, separate_overrides, to_dict


@dataclass(frozen=True)
class Circle:
    radius: float = 1.0


@dataclass(frozen=True)
class Square:
    side: int
    colour: Literal["red", "blue"] = "red"


@dataclass(frozen=True)
class Picture:
    shapes: tuple[Circle | Square, ...]
    title: str | None = None
    frame: Square | None = None


PICTURE = Picture(shapes=(Circle(2.0), Square(3, "blue")), title="two")


def test_round_trip_through_json():
    assert from_dict(Picture, json.loads(json.dumps(to_dict(PICTURE)))) == PICTURE


def test_whole_numbers_become_floats_where_floats_are_wanted():
    circle = from_dict(Circle, {"radius": 2})
    assert circle == Circle(2.0)
    assert isinstance(circle.radius, float)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"shapes": [{"kind": "Circle", "radios": 1}]}, r"shapes\[0\]\.radios: .*did you mean 'radius'"),
        ({"shapes": [{"kind": "Cirle"}]}, r"shapes\[0\]: kind 'Cirle'; did you mean 'Circle'"),
        ({"shapes": [{"kind": "Square"}]}, r"shapes\[0\]: Square needs side"),
        ({"shapes": [{"kind": "Square", "side": 1.5}]}, r"shapes\[0\]\.side: expected a whole number, not 1\.5"),
        ({"shapes": [{"kind": "Square", "side": True}]}, r"side: expected a whole number, not True"),
        (
            {"shapes": [{"kind": "Square", "side": 1, "colour": "green"}]},
            r"colour: expected one of 'red', 'blue', not 'green'",
        ),
        ({"shapes": 3}, r"shapes: expected a list \(Circle or Square\), not 3"),
        ({"shapes": [], "title": 4}, r"title: expected text, not 4"),
    ],
)
def test_mistakes_name_the_path_and_what_is_allowed(data, message):
    with pytest.raises(ValueError, match=message):
        from_dict(Picture, data)


def test_override_replaces_deep_values():
    changed = override(PICTURE, "shapes.1.side=7", "title=none but text", 'frame={"side": 2}')
    assert changed == Picture((Circle(2.0), Square(7, "blue")), "none but text", Square(2))
    assert PICTURE.shapes[1].side == 3


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("titel=x", "did you mean 'title'"),
        ("shapes.9.side=1", "'9' is not an index below 2"),
        ("shapes.1.sidee=1", "did you mean 'side'"),
        ("title.x=1", "nothing inside"),
        ("title", "expected key=value"),
    ],
)
def test_override_mistakes(assignment, message):
    with pytest.raises(ValueError, match=message):
        override(PICTURE, assignment)


def test_nearest_lists_all_when_none_is_near():
    assert nearest("zzz", ["b", "a"]) == "; expected one of: a, b"


@dataclass(frozen=True)
class Scene:
    wide: bool | None = None
    rate: float | None = None
    count: int | None = None
    name: str | None = None
    colours: tuple[Literal["red", "blue"], ...] = ()
    sizes: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("wide=yes", True), ("wide=On", True), ("wide=TRUE", True), ("wide=true", True),
        ("wide=no", False), ("wide=off", False), ("wide=False", False), ("wide=null", None),
        ("rate=3", 3.0), ("rate=1e-3", 1e-3), ("count=3", 3), ("count=null", None),
        ("name=no", "no"), ("name=2024", "2024"), ("name=true", "true"), ('name="a b"', "a b"),
        ("colours=red", ("red",)), ("colours=red,blue", ("red", "blue")), ('colours=["blue"]', ("blue",)),
        ("sizes=1,2", (1, 2)), ("sizes=[]", ()),
    ],
)  # fmt: skip
def test_a_typed_value_is_read_as_its_type_wants_it(assignment, value):
    assert override(Scene(), assignment) == Scene(**{assignment.partition("=")[0]: value})


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("wide=maybe", "wide: expected true or false, not 'maybe'"),
        ("wide=1", "wide: expected true or false, not '1'"),
        ("count=sixty", "count: expected a whole number, not 'sixty'"),
        ("count=1.5", "count: expected a whole number, not '1.5'"),
        ("count=yes", "count: expected a whole number, not 'yes'"),
        ("count=" + "9" * 5000, "count: expected a whole number, not '999"),
        ("count=", "count: expected a whole number, not ''"),
        ("rate=fast", "rate: expected a number, not 'fast'"),
        ("colours=red,green", r"colours\[1\]: expected one of 'red', 'blue', not 'green'"),
    ],
)
def test_a_typed_value_of_another_type_is_answered_in_plain_words(assignment, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        override(Scene(), assignment)


def test_words_of_a_file_are_not_taken_for_answers():
    with pytest.raises(ValueError, match="wide: expected true or false, not 'yes'"):
        from_dict(Scene, {"wide": "yes"})


def test_near_ignores_case_and_gives_nothing_when_nothing_is_near():
    assert near("NOTES.txt", ["notes.txt", "other.md"]) == "; did you mean 'notes.txt'?"
    assert near("zzz", ["a", "b"]) == ""
    assert near("note.txt", ["notes.txt", "note.md", "x"], 2) == "; did you mean 'notes.txt' or 'note.md'?"


def test_fields_are_read_from_source_with_those_of_the_bases_first():
    fields, docstring = declared("groundup.build.settings", "BuildSettings")
    assert list(fields.items()) == [(f.name, f.default) for f in dataclasses.fields(BuildSettings)]
    assert docstring == inspect.getdoc(BuildSettings)
    assert all(f"\n{name}: " in docstring for name in fields)


def test_examples_in_docstrings():
    assert doctest.testmod(config).failed == 0


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("45", 45), (" 2 m ", 120)])
def test_times(text, seconds):
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "ten", "-5m", "5d", "1e3", "inf"])
def test_bad_times(text):
    with pytest.raises(ValueError, match="expected a time"):
        parse_seconds(text)


def test_overrides_are_told_from_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd=name.txt").write_text("x")
    files, overrides = separate_overrides(["a.txt", "d_model=64", "odd=name.txt"])
    assert files == ["a.txt", "odd=name.txt"]
    assert overrides == ["d_model=64"]


def test_only_a_name_makes_an_override():
    files, overrides = separate_overrides(["d_modl=64", "notes/a=b.txt", "a*=b", "=x"])
    assert (files, overrides) == (["notes/a=b.txt", "a*=b", "=x"], ["d_modl=64"])
