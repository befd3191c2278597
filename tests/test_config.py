"""Configurations survive JSON, and mistakes are answered with the path and the nearest name."""

import json
from dataclasses import dataclass
from typing import Literal

import pytest

from groundup.config import from_dict, nearest, override, to_dict


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
        ({"shapes": [{"kind": "Square", "side": 1.5}]}, r"shapes\[0\]\.side: 1\.5 is not int"),
        ({"shapes": [{"kind": "Square", "side": True}]}, r"side: True is not int"),
        (
            {"shapes": [{"kind": "Square", "side": 1, "colour": "green"}]},
            r"colour: 'green' is not one of 'red', 'blue'",
        ),
        ({"shapes": 3}, r"shapes: 3 is not"),
        ({"shapes": [], "title": 4}, r"title: 4 is not str or NoneType"),
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
