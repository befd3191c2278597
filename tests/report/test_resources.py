"""Resources while training, as the page shows them."""

import json

from groundup.report.facts import facts
from groundup.report.resources import grown, resource_lines, written_bytes
from groundup.report.run import read_run


def test_what_was_written_counts_over_resumes():
    assert grown([10.0, 30.0, 5.0, 6.0]) == 36.0
    assert grown([]) == 0 and grown([7.0]) == 7.0


def test_lines_by_hand():
    records = [
        {"process_cores": 2.0, "resident_bytes": 2**30, "free_memory_bytes": 3 * 2**30, "data_wait_share": 0.01},
        {"process_cores": 1.0, "resident_bytes": 2**31, "free_memory_bytes": 2**30, "data_wait_share": 0.03},
        {"process_cores": 1.9, "resident_bytes": None, "gpu_watts": 350.4, "machine_cpu_share": "much"},
    ]
    assert dict(resource_lines(records)) == {
        "this process, median": "1.90 cores",
        "memory held, at most": "2.00 GiB",
        "memory free, at least": "1.00 GiB",
        "waited for data, mean": "2.0 %",
        "GPU power, mean": "350 W",
        "looks": "3",
    }
    assert resource_lines([]) == resource_lines([{"step": 1}]) == []


def test_the_page_has_them_where_there_are_any(fake_run):
    title = "Resources while training"
    assert title not in facts(read_run(fake_run), None)
    (fake_run / "resources.jsonl").write_text(json.dumps({"step": 3, "process_cores": 1.5}) + '\n{"step": 4, "pro')
    run = read_run(fake_run)
    assert ("this process, median", "1.50 cores") in facts(run, None)[title]
    assert "resources.jsonl: 1 line that is no whole record" in run.problems


def test_a_resumed_run_that_soon_wrote_more_is_counted_whole():
    """The second session's first look is above the first's last: no fall of the counter tells of the resume."""
    looks = [(1.0, 10.0), (1.0, 30.0), (2.0, 40.0), (2.0, 41.0)]
    records = [{"session": session, "written_bytes": size} for session, size in looks]
    assert written_bytes(records) == 71.0
    assert ("written to disk", "71 bytes") in resource_lines(records)
    assert written_bytes([{"written_bytes": value} for value in (10.0, 30.0, 5.0)]) == 35.0
    assert written_bytes([{"step": 1}]) is None
