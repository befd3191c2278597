from groundup.report.tables import Column, Table, to_html, to_text

TABLE = Table([Column("name"), Column("value", "right")], [["<b>", "1.5"], ["wide 中", "10"]], emphasis=frozenset({1}))


def test_html_is_escaped_and_marks_rows():
    html = to_html(TABLE)
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert html.count("<tr") == 3
    assert '<tr class="emphasis"><th scope="row" class="left">wide 中</th><td class="right">10</td></tr>' in html


def test_text_is_aligned_by_what_a_terminal_shows():
    assert to_text(TABLE) == "name     value\n-------  -----\n<b>        1.5\nwide 中     10"


def test_text_cannot_steer_the_terminal():
    hostile = Table([Column("a")], [["\x1b[2Jgone\nnext\u202e"]])
    assert to_text(hostile).splitlines()[2:] == [" [2Jgone next"]


def test_captions_and_emptiness():
    assert to_text(Table([Column("a")], [], caption="None yet")) == "None yet\na\n-"
    assert "<caption>1 &lt; 2</caption>" in to_html(Table([Column("a")], [], caption="1 < 2"))
    assert not Table([Column("a")], [])
