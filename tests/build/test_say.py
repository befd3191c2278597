"""Lines for the person who waits: at once, and never among the results."""

from groundup.build.say import say


def test_lines_go_to_standard_error_only(capsys):
    say("reading text")
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "reading text\n")


def test_lines_are_not_held_back(monkeypatch):
    class Stream:
        events: list = []

        def write(self, text):
            self.events.append(text)

        def flush(self):
            self.events.append("flushed")

    monkeypatch.setattr("sys.stderr", Stream())
    say("done")
    assert Stream.events == ["done", "\n", "flushed"]
