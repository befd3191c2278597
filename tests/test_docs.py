"""Every Python block of docs/*.md runs as it stands. The blocks of a page share a namespace and an empty folder."""

import sys

import pytest

from tests.test_readme import REPOSITORY, code_blocks

PAGES = sorted(REPOSITORY.joinpath("docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_of_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = type(sys)(f"docs.{page.stem}")  # a real module, because dataclasses look theirs up
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in code_blocks(page.read_text("utf-8")):
        if block.language == "python":
            source = "\n" * (block.line - 1) + block.code  # so that a traceback names the page's own lines
            exec(compile(source, str(page), "exec"), vars(module))


def test_no_python_block_is_left_out():
    excused = [f"{page.name}:{b.line}" for page in PAGES for b in code_blocks(page.read_text("utf-8")) if b.not_run]
    assert excused == []
