"""The page: what it shows, what it must never show, and folders in every state of disrepair."""

import ast
import html
import html.parser
import json
import re
import shlex
import shutil
import subprocess

import pytest

from groundup.report import report_text, write_report

VOID = {"meta", "link", "br", "hr", "img", "input", "wbr"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Checker(html.parser.HTMLParser):
    """Collects tags and text; every tag that opens must close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.words, self.ids = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def shown(run):
    page = write_report(run).read_text("utf-8")
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    return page, checker


def test_shows_what_the_run_was(fake_run):
    page, checker = shown(fake_run)
    for expected in (
        "fable-run",
        "1.951 bits per byte, 8.0 % fewer than the best simple model, Kneser-Ney 5-gram",
        "zstd -19",
        "2.354",
        "5.68 M",
        "3.20 epochs",
        "9 min 48 s",
        "of 10 min 00 s",
        "MFU 41 %",
        "+16.7 %",
        "missed",
        "The fox and the",
        "It ran away.",
        "Imaginary CPU (2 cores)",
        "a smaller model was chosen",
        "Repeats are still worth about 95 % of new text",
        "Fully open",
        "SHA-256 of 1 file",
        "CC0",
        "seed 3",
        "Every document alone.",
        "groundup chat fable-run",
        "energy and money not recorded",
    ):
        assert expected in checker.text, expected
    assert page.count("<svg") == 6
    assert "What this report lacks" not in page


def test_is_one_small_file_that_loads_and_runs_nothing(fake_run):
    page, checker = shown(fake_run)
    assert len(page) < 1_000_000
    tags = {tag for tag, _ in checker.seen}
    assert not tags & {"script", "link", "iframe", "object", "embed", "img", "base", "form"}
    assert "http://" not in page
    assert "https://" not in page
    assert "url(#" in page
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page
    assert not [a for _, attrs in checker.seen for a in attrs if a.startswith("on") or a in ("src", "srcset")]
    policy = next(a["content"] for _, a in checker.seen if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "style-src 'unsafe-inline'" in policy


def test_text_of_the_run_is_escaped(fake_run):
    page, checker = shown(fake_run)
    assert "<script>" not in page
    assert "<b>fox</b>" not in page
    assert "<script>alert('x')</script> & \"quotes\" ? 中文" in checker.text
    for name, key in (("env.json", "device"), ("plan.json", "<i>key</i>")):
        content = json.loads((fake_run / name).read_text())
        content[key] = "<img src=x onerror=alert(1)>"
        (fake_run / name).write_text(json.dumps(content))
    result = json.loads((fake_run / "result.json").read_text())
    result["stages"][0]["name"] = result["baselines"]["</svg><script>"] = 3.0
    result["stages"][0]["name"] = "<script>"
    (fake_run / "result.json").write_text(json.dumps(result))
    page, checker = shown(fake_run)
    assert not {tag for tag, _ in checker.seen} & {"img", "script", "i"}


def test_no_leftover_files(fake_run):
    before = {path.name for path in fake_run.iterdir()}
    write_report(fake_run)
    assert {path.name for path in fake_run.iterdir()} == before | {"report.html", "report.json"}


def test_the_same_folder_gives_the_same_bytes(fake_run):
    first = write_report(fake_run).read_bytes()
    data = (fake_run / "report.json").read_bytes()
    assert write_report(fake_run).read_bytes() == first
    assert (fake_run / "report.json").read_bytes() == data


def test_paths_of_the_machine_stay_private(fake_run):
    result = json.loads((fake_run / "result.json").read_text())
    (fake_run / "result.json").write_text(json.dumps({**result, "run": "/secret/place/fable-run"}))
    page, _ = shown(fake_run)
    assert "fables.txt" in page
    assert "/secret/place" not in page + (fake_run / "report.json").read_text()
    assert str(fake_run.parent) not in page + (fake_run / "report.json").read_text()


def test_json_beside_it_holds_the_same_figures(fake_run):
    write_report(fake_run)
    report = json.loads((fake_run / "report.json").read_text("utf-8"))
    step = next(c for c in report["comparisons"] if c["name"] == "step_seconds")
    assert (step["predicted"], step["measured"], step["met"]) == (0.36, 0.42, False)
    assert step["error"] == pytest.approx(0.42 / 0.36 - 1)
    assert report["openness"]["level"] == "fully open"
    assert report["result"]["baselines"]["kneser_ney_5"] == 2.121
    assert len(report["curves"]["loss"]["y"]) == 120
    assert report["samples"][1]["text"].startswith("<script>")


def test_text_for_the_terminal(fake_run):
    text = report_text(fake_run)
    assert re.search(r"^this model +1\.9510$", text, re.MULTILINE)
    assert re.search(r"^step time +360 ms +420 ms +\+16\.7 % +±10 % +missed$", text, re.MULTILINE)
    assert "Openness: fully open" in text
    assert "Missing" not in text


def test_a_torn_line_and_odd_numbers_cost_only_themselves(fake_run):
    with open(fake_run / "metrics.jsonl", "a") as f:
        f.write('{"step": 1210, "loss": NaN, "tokens": 9912320}\n')
        f.write('{"step": 1220, "loss": null, "tokens": 9994240, "lr": Infinity}\n')
        f.write('{"step": 1230, "lo')
    _, checker = shown(fake_run)
    assert "metrics.jsonl: 1 line that is no whole record" in checker.text
    assert "metrics.jsonl: 2 records with a loss that is no finite number" in checker.text
    report = json.loads((fake_run / "report.json").read_text("utf-8"))
    assert len(report["curves"]["loss"]["y"]) == 120


def test_empty_metrics(fake_run):
    (fake_run / "metrics.jsonl").write_text("")
    (fake_run / "curve.jsonl").unlink()
    page, checker = shown(fake_run)
    assert "metrics.jsonl: no records" in checker.text
    assert "<svg" not in page


def test_one_record_is_a_point(fake_run):
    (fake_run / "metrics.jsonl").write_text('{"step": 1, "loss": 5.0, "lr": 0.1}\n')
    (fake_run / "curve.jsonl").unlink()
    page, _ = shown(fake_run)
    assert page.count("<svg") == 2


def test_the_loss_scale_of_fp16_and_its_skips_are_shown(fake_run):
    """Of other runs there is no such chart."""
    assert "Loss scale" not in shown(fake_run)[0]
    records = [{"step": n, "loss": 5.0, "loss_scale": 2.0 ** (16 - n), "overflows": n} for n in range(1, 4)]
    (fake_run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (fake_run / "curve.jsonl").unlink()
    page, _ = shown(fake_run)
    assert "Loss scale over step" in page and "3 steps overflowed" in page
    report = json.loads((fake_run / "report.json").read_text())
    assert report["curves"]["loss_scale"]["y"] == [2.0**15, 2.0**14, 2.0**13]


@pytest.mark.parametrize("name", ["config.json", "env.json", "plan.json", "result.json"])
@pytest.mark.parametrize("damage", ["absent", "torn", "list", "empty"])
def test_any_file_may_be_missing_or_broken(fake_run, name, damage):
    (fake_run / "curve.jsonl").unlink()
    (fake_run / "metrics.jsonl").unlink()
    path = fake_run / name
    match damage:
        case "absent":
            path.unlink()
        case "torn":
            path.write_bytes(path.read_bytes()[:40])
        case "list":
            path.write_text("[1, 2]")
        case "empty":
            path.write_bytes(b"")
    _, checker = shown(fake_run)
    assert "What this report lacks" in checker.text
    assert re.search(rf"{re.escape(name)}: (absent|unreadable|holds a list)", checker.text)
    assert "Missing:" in report_text(fake_run)


NONSENSE = [None, "x", -1, float("nan"), [], {}, [[]], {"a": {"b": [None]}}, True, 1e308, 10**400]


@pytest.mark.parametrize("value", NONSENSE, ids=lambda v: repr(v)[:12])
def test_any_value_may_be_of_any_type(fake_run, value):
    for name in ("result.json", "plan.json", "env.json", "config.json", "baselines.json"):
        path = fake_run / name
        path.write_text(json.dumps({key: value for key in json.loads(path.read_text())}))
    (fake_run / "metrics.jsonl").write_text(json.dumps(dict.fromkeys(("step", "loss", "tokens", "lr"), value)))
    (fake_run / "samples" / "base.json").write_text(json.dumps([{"prompt": value, "text": value}, value]))
    (fake_run / "samples" / "odd.json").write_text(json.dumps(value))
    shown(fake_run)
    report_text(fake_run)


def test_an_unfinished_run_with_metrics_only(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 5.0}\n{"step": 2, "loss": 4.0}\n')
    page, checker = shown(tmp_path)
    assert "It was not yet measured on held-out text" in checker.text
    assert "Closed" in checker.text
    assert "result.json: absent" in checker.text
    assert "Use it" not in checker.text


@pytest.mark.parametrize("make", [False, True])
def test_refuses_what_is_no_run_folder(tmp_path, make):
    path = tmp_path / "nothing"
    if make:
        path.mkdir()
    with pytest.raises(ValueError, match="not a run folder" if make else "no such run folder"):
        write_report(path)


def test_shell_characters_in_the_name_are_quoted(fake_run):
    odd = fake_run.rename(fake_run.with_name("a run; rm"))
    _, checker = shown(odd)
    assert "groundup chat 'a run; rm'" in checker.text


def test_long_samples_are_cut_and_many_are_left_out(fake_run):
    many = [{"prompt": "p", "text": f"{i}:" + "long " * 5000} for i in range(100)]
    (fake_run / "samples" / "base.json").write_text(json.dumps(many))
    page, checker = shown(fake_run)
    assert len(page) < 300_000
    assert "99:" in checker.text
    assert " …" in checker.text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
@pytest.mark.slow
def test_renders_in_a_browser_without_a_complaint(fake_run, tmp_path):
    page = write_report(fake_run)
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0",
        f"--screenshot={tmp_path / 'page.png'}", "--window-size=1280,2000", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert (tmp_path / "page.png").stat().st_size > 50_000
    assert "CONSOLE" not in done.stderr


def commands_of(page):
    """The text of every block of commands or code on the page."""
    return [html.unescape(block) for block in re.findall(r"<pre[^>]*>(.*?)</pre>", page, re.DOTALL)]


def test_commands_name_the_folder_as_seen_from_where_they_will_run(fake_run, monkeypatch):
    runs = fake_run.parent / "all runs"
    runs.mkdir()
    run = fake_run.rename(runs / "fable's")
    for here, folder in ((fake_run.parent, "all runs/fable's"), (runs, "fable's"), (run, ".")):
        monkeypatch.chdir(here)
        page = write_report(run).read_text("utf-8")
        terminal, python, peers = commands_of(page)
        for line in terminal.splitlines():
            assert (here / shlex.split(line)[2]).resolve() == run
        for code in (python, peers):
            named = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
            assert folder in named
        assert "as seen from where groundup ran" in page


def test_a_folder_that_looks_like_an_option_is_named_as_a_path(fake_run, monkeypatch):
    odd = fake_run.rename(fake_run.with_name("--json"))
    monkeypatch.chdir(odd.parent)
    assert "groundup eval ./--json" in commands_of(write_report(odd).read_text("utf-8"))[0]


def test_a_run_that_lies_elsewhere_is_named_without_its_path(fake_run):
    page, checker = shown(fake_run)
    assert "groundup eval fable-run" in checker.text
    assert "fable-run is the folder that holds this page, as seen from the folder above it" in checker.text


def test_samples_keep_their_line_breaks(fake_run):
    sample = [{"prompt": "KING:\nWhat news,", "text": "\n\nMESSENGER:\n  None, my lord."}]
    (fake_run / "samples" / "base.json").write_text(json.dumps(sample))
    page, _ = shown(fake_run)
    assert "<b>KING:\nWhat news,</b>\n\nMESSENGER:\n  None, my lord.</p>" in page
    for kind in ("sample", "turn"):
        rule = re.search(rf"^\.{kind} \{{(.*?)\}}", page, re.MULTILINE)
        assert rule is not None
        assert "white-space: pre-wrap" in rule[1]
