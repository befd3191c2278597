"""The line that a person watches."""

import io

from groundup.train.progress import ProgressLine, format_line

RECORD = {"step": 1200, "loss": 2.3141, "tokens_per_second": 41300.4, "mfu": 0.451, "skipped": 2}


def test_the_line_by_hand():
    line = "step 1,200  loss 2.314  41,300 tok/s  MFU 45%  2 skipped  4:05 left"
    assert format_line(RECORD, 245.9) == line
    assert format_line(RECORD | {"mfu": None, "skipped": 0}, None) == "step 1,200  loss 2.314  41,300 tok/s"
    assert format_line(RECORD, 3 * 3600.0 + 5).endswith("3:00:05 left")


def test_plain_lines_are_rare_and_a_terminal_gets_a_bar():
    stream = io.StringIO()
    line = ProgressLine(stream, seconds_between_lines=60.0)
    line.show(RECORD, 0.5, 10.0)
    line.show(RECORD, 0.6, 10.0)
    line.close()
    assert stream.getvalue().count("step") == 1

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    bar = ProgressLine(terminal)
    bar.show(RECORD, 0.5, 10.0)
    bar.close()
    assert "loss 2.314" in terminal.getvalue()


def test_what_is_not_known_is_left_out_of_the_line():
    bare = {"step": 1, "loss": 2.0, "tokens_per_second": 5.0}
    assert format_line(bare, None) == "step 1  loss 2.000  5 tok/s"
    assert format_line(bare, -3.0).endswith("0:00 left")


def test_lines_come_after_a_pause_and_a_bar_needs_a_terminal(monkeypatch):
    stream, now = io.StringIO(), [0.0]
    monkeypatch.setattr("groundup.train.progress.time.monotonic", lambda: now[0])
    line = ProgressLine(stream, seconds_between_lines=10.0)
    for now[0] in (0.0, 9.0, 10.0, 19.0, 21.0):
        line.show(RECORD | {"step": int(now[0])}, None, None)
    assert [text.split()[1] for text in stream.getvalue().splitlines()] == ["0", "10", "21"]
