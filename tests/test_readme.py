"""Every command and Python block of the README runs, in order, in an empty folder; each link leads somewhere.

A block that cannot run in a test stands under a comment with the reason: `<!-- not run: ten minutes -->`.
Only these may be excused: fetching the repository, `make`, a whole build, and what reads one (runs/).
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from groundup.cli import main

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / "README.md"
SHELL_SIGNS = set("|&;<>$`*(){}")
SHELL = ("bash", "sh", "shell", "console")
EXCUSABLE = re.compile(r"(git clone|cd|make|(\.venv/bin/)?groundup build)\b|.*\bruns/")


@dataclass(frozen=True)
class CodeBlock:
    line: int  # of the first line of code, counted from 1
    language: str
    code: str
    not_run: str | None  # the reason, "" when the comment gives none

    @property
    def commands(self) -> str:
        """The shell lines to run: a console transcript marks them with `$ `, the rest is output."""
        if self.language != "console":
            return self.code
        return "\n".join(line[2:] for line in self.code.splitlines() if line.startswith("$ "))


def code_blocks(markdown: str) -> list[CodeBlock]:
    blocks, fence, language, start, code, reason = [], None, "", 0, [], None
    for number, line in enumerate(markdown.splitlines(), 1):
        opening = re.match(r"\s*(`{3,}|~{3,})\s*(\w*)", line)
        if fence is not None:
            if line.strip() == fence:
                blocks.append(CodeBlock(start, language, "\n".join(code), reason))
                fence, reason = None, None
            else:
                code.append(line)
        elif opening:
            fence, language, start, code = opening[1], opening[2], number + 1, []
        elif comment := re.match(r"\s*<!--\s*not run:?(.*?)-->", line):
            reason = comment[1].strip()
        elif line.strip():
            reason = None
    return blocks


def excuse_faults(block: CodeBlock) -> list[str]:
    steps = [block.code.replace("\n", " ")] if block.language == "python" else block.commands.splitlines()
    kept = [x.strip() for x in steps if x.strip() and not x.strip().startswith("#")]
    unexcused = [f"may not be left out: {x}" for x in kept if not EXCUSABLE.match(x)]
    return unexcused if block.not_run else ["no reason given", *unexcused]


def run_commands(block: CodeBlock, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines that are `groundup ...` and nothing else in this process, which saves loading torch for each; a block with
    any other line, or with several ranks, in a shell."""
    lines = [shlex.split(line, comments=True) for line in block.commands.replace("\\\n", " ").splitlines()]
    plain = all(words[:1] in ([], ["groundup"]) and not SHELL_SIGNS & set("".join(words)) for words in lines)
    if not plain or "--ranks" in block.commands:
        run_shell(block, folder)
        return
    for words in filter(None, lines):
        try:
            code = main(words[1:])
        except SystemExit as ended:
            code = ended.code
        out, err = capsys.readouterr()
        assert not code, f"README.md:{block.line}: {' '.join(words)}: exit code {code}\n{out}\n{err}"


def run_shell(block: CodeBlock, folder: Path) -> None:
    path = f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.commands],
        cwd=folder,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"README.md:{block.line}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"


def run_python(block: CodeBlock, namespace: dict) -> None:
    source = "\n" * (block.line - 1) + block.code  # so that a traceback names the README's own lines
    exec(compile(source, str(README), "exec"), namespace)


def install_shims(folder: Path) -> None:
    """`groundup` and `.venv/bin/groundup` in `folder` mean the code under test, installed or not."""
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, command in {"groundup": "-m groundup.cli", "python": ""}.items():
        shim = programs / name
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n', "utf-8")
        shim.chmod(0o755)


@pytest.mark.slow
def test_every_block_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    install_shims(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in code_blocks(README.read_text("utf-8")):
        if block.not_run is not None:
            continue
        if block.language == "python":
            run_python(block, namespace)
        elif block.language in SHELL:
            run_commands(block, tmp_path, capsys)


def test_only_what_cannot_run_is_left_out():
    excused = [b for b in code_blocks(README.read_text("utf-8")) if b.not_run is not None]
    assert [f"README.md:{b.line}: {fault}" for b in excused for fault in excuse_faults(b)] == []


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in (REPOSITORY / "docs").glob("*.md"))])
def test_relative_links_lead_to_a_file(page):
    text = re.sub(r"```.*?```", "", (REPOSITORY / page).read_text("utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text)
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not ((REPOSITORY / page).parent / link).exists()] == []


def test_the_parser_by_hand():
    python = "```python\nx = 1\n```\n"
    console = "<!-- not run: needs a network -->\n\n```console\n$ make run\nloss 3\n```\n"
    text = f"a\n{python}{console}```\nplain\n```\n"
    first, second, third = code_blocks(text)
    assert (first.line, first.language, first.code, first.not_run) == (3, "python", "x = 1", None)
    assert (second.language, second.commands, second.not_run) == ("console", "make run", "needs a network")
    assert (third.language, third.not_run) == ("", None)


@pytest.mark.parametrize(
    ("comment", "command", "fine"),
    [
        ("<!-- not run: ten minutes -->", "groundup build --budget 10m", True),
        ("<!-- not run: clones -->", "git clone URL\ncd groundup\nmake run", True),
        ("<!-- not run -->", "make run", False),
        ("<!-- not run: needs the run -->", "groundup eval runs/a", True),
        ("<!-- not run: too lazy -->", "groundup doctor", False),
    ],
)
def test_excuses(comment, command, fine):
    (block,) = code_blocks(f"{comment}\n```bash\n{command}\n```\n")
    assert (excuse_faults(block) == []) is fine
