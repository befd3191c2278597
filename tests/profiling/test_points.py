"""Points of the roofline: the ledger's work over the trace's time, and the page that they are drawn on."""

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
import torch

from groundup import presets
from groundup.accounting import Ceiling, Machine, step_work
from groundup.model import Transformer
from groundup.profiling import ProfileSettings, profile_model, roofline_points
from groundup.profiling.groups import FEED_FORWARD, HEAD, NORM
from groundup.profiling.points import RooflinePoint
from groundup.report.roofline import Box, _free, ceilings, roofline_svg, roofline_table, write_roofline

MACHINE = Machine("cpu", "one core", 1, "fp32", {"fp32 x1": 5e10, "bf16 x1": 1e11, "fp32 x2": 9e10}, 1e10, 2**33)
CONFIG = presets.llama(vocab_size=64, d_model=32, num_layers=1, context_length=16)


@pytest.fixture(scope="module")
def profile():
    settings = ProfileSettings(batch_size=2, steps=1, warmup=1, precision="fp32")
    return profile_model(Transformer(CONFIG), settings, machine=MACHINE)[0]


def test_a_point_by_hand():
    point = RooflinePoint("product", flops=4000, bytes_moved=100, seconds=1e-6)
    assert point.intensity == 40 and point.flops_per_second == 4e9
    assert point.roof(Ceiling("", 5e10, 1e10)) == 5e10
    assert replace(point, flops=200).roof(Ceiling("", 5e10, 1e10)) == 2e10


def test_points_hold_the_ledgers_work_and_the_groups_time(profile):
    points = {p.name: p for p in roofline_points(CONFIG, profile, MACHINE)}
    work = step_work(CONFIG, "train", batch=2, seq=16, dtype=torch.float32)
    assert sum(p.flops for p in points.values()) == sum(row.flops for row in work)
    products = 3 * 3 * 2 * (2 * 16) * 32 * CONFIG.blocks[0].ffn.d_ff
    assert points["feed-forward products"].flops == products
    both = points["feed-forward products"].seconds + points["activation"].seconds
    assert both == pytest.approx(profile.group(FEED_FORWARD).seconds)
    assert points["head"].seconds + points["loss"].seconds == pytest.approx(profile.group(HEAD).seconds)
    assert points["norms"].seconds == profile.group(NORM).seconds
    assert points["head"].intensity > points["loss"].intensity
    assert [p.seconds for p in points.values()] == sorted((p.seconds for p in points.values()), reverse=True)


def test_names_of_other_devices_leave_groups_whole(profile):
    renamed = replace(profile, operations=tuple(replace(o, name="gemm_kernel") for o in profile.operations))
    names = {p.name for p in roofline_points(CONFIG, renamed, MACHINE)}
    assert {"feed-forward", "head and loss"} <= names and not {"activation", "head"} & names


def test_roofs_are_those_of_the_threads_in_use(profile):
    assert [(c.name, c.peak_flops) for c in ceilings(MACHINE, profile.device)] == [("bf16", 1e11), ("fp32", 5e10)]
    assert ceilings(replace(MACHINE, gemm_flops={}), profile.device)[0].peak_flops == profile.device.peak_flops


def test_the_page_names_every_operation_and_the_roofs(profile, tmp_path):
    points = roofline_points(CONFIG, profile, MACHINE)
    drawing = str(roofline_svg(points, ceilings(MACHINE, profile.device)))
    ET.fromstring(drawing.replace("xlink:href", "href"))
    for words in ("memory, 10 GB/s", "bf16, 100 GFLOP/s", "fp32, 50 GFLOP/s", *(p.name for p in points)):
        assert words in drawing
    assert drawing == str(roofline_svg(points, ceilings(MACHINE, profile.device)))
    text = write_roofline(tmp_path / "roofline.html", profile, points, MACHINE).read_text()
    assert "one core" in text and points[0].name in text and "<script" not in text
    row = roofline_table(points[:1], profile.device).rows[0]
    assert row[0] == points[0].name and row[-1].endswith("%")
    with pytest.raises(ValueError, match="no operation of this step has FLOPs"):
        write_roofline(tmp_path / "roofline.html", profile, [], MACHINE)


def test_labels_step_aside():
    taken = [Box(100, 90, 300, 110)]
    (dx, dy), box = next(_free(90, 100, 60, taken))
    assert (dx, dy) == (-12, 0) and not box.meets(taken[0])
    (_, dy), box = next(_free(90, 100, 60, [*taken, Box(0, 90, 85, 110)]))
    assert dy and not any(box.meets(other) for other in taken)
