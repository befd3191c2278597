"""The explorer page: exactly the tokenizer's ids and merges in a real browser, in one safe and small file."""

import base64
import hashlib
import html.parser
import itertools
import json
import os
import random
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from groundup.tokenizer import Tokenizer
from groundup.tokenizer.explorer import MAX_PAGE_BYTES, pack, write_page
from groundup.tokenizer.pretokenize import PATTERNS, Pretokenizer, well_formed
from tests.browser import CHROMIUM, NO_CHROMIUM, running
from tests.tokenizer.awkward import FRAGMENTS
from tests.tokenizer.conftest import PROSE, SPECIAL_TOKENS

EVIL = "</script><script>document.title='forged'</script><img src=x onerror=\"document.title='forged'\">"
VOCABULARIES = (
    "gpt2", "r50k_base.tiktoken", "cl100k_base.tiktoken", "o200k_base.tiktoken", "llama3/tokenizer.json",
    "qwen2.5/tokenizer.json", "smollm2.gguf",
)  # fmt: skip


def awkward_texts(count=400):
    """The fragments, random mixtures of them, and long texts."""
    draw = random.Random(0)
    mixtures = ["".join(draw.choices(FRAGMENTS, k=draw.randint(2, 9))) for _ in range(count)]
    long = ["ab" * 3000, " " * 500 + "x", "\n \t" * 200, "".join(FRAGMENTS) * 3, PROSE * 5, "'\u017f\ud800x\udc00"]
    return [*FRAGMENTS, *mixtures, *long]


def steps_by_scanning(tokenizer, piece):
    """Every merge of a piece by the definition: (left, right, bytes of all symbols after it)."""
    ranks = {pair: rank for rank, pair in enumerate(tokenizer.merges)}
    if tokenizer.ranked_by_token:
        ids = {token: id for id, token in tokenizer.vocab.items()}
        ranks = {pair: ids[b"".join(pair)] for pair in ranks}
    symbols, steps = [bytes([byte]) for byte in piece.encode()], []
    while known := [(ranks[pair], place) for place, pair in enumerate(itertools.pairwise(symbols)) if pair in ranks]:
        rank, place = min(known)
        pair = symbols[place : place + 2]
        symbols[place : place + 2] = [b"".join(pair)]
        steps.append((rank, *pair, list(symbols)))
    return steps


def steps_in_page(browser, number, piece, vocab):
    call = f"started.then((all) => all[{number}].tokenizer.mergeSteps({json.dumps(piece)}))"
    steps = browser.evaluate(call)["steps"]
    return [(s["rank"], vocab[s["left"]], vocab[s["right"]], [vocab[id] for id in s["symbols"]]) for s in steps]


def ids_in_page(browser, texts, *, specials=False):
    """For each tokenizer of the open page, the ids of each text."""
    encode = f"({{tokenizer}}) => {json.dumps(texts)}.map((text) => tokenizer.encode(text, {json.dumps(specials)}))"
    return browser.evaluate(f"started.then((all) => all.map({encode}))")


def enter(browser, text):
    """Replace the text in the box as a user does, and wait for the tokens of it."""
    browser.click("#text")
    browser.evaluate("document.getElementById('text').select()")
    browser.type(text)
    drawn(browser)


def drawn(browser):
    browser.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def shown_ids(browser):
    """The ids that each side of the page lists."""
    browser.evaluate("document.querySelectorAll('.all').forEach((details) => { details.open = true; })")
    drawn(browser)
    lists = browser.evaluate("Array.from(document.querySelectorAll('.ids'), (list) => list.value)")
    return [[int(id) for id in line.split(",") if id] for line in lists]


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip(NO_CHROMIUM)
    with running(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def browser(chromium):
    """A browser that must have nothing to complain of when the test ends, and must have loaded one file only."""
    chromium.look(1280)
    yield chromium
    assert chromium.complaints == []
    assert len(chromium.requests) <= 1


@pytest.fixture
def opened(browser, tmp_path):
    """Write the page of some tokenizers and open it."""

    def open_page(tokenizers):
        page = write_page(tokenizers, tmp_path / "page.html")
        browser.open(page)
        browser.evaluate("started")
        return browser

    return open_page


def ordinary(tokenizer):
    return {id: token for id, token in tokenizer.vocab.items() if id not in tokenizer.special_tokens.values()}


def variants(tokenizer):
    """The same tokens under every rule for merging, with ids in another order and with gaps."""
    vocab = ordinary(tokenizer)
    ids = random.Random(1).sample(range(3 * len(vocab)), len(vocab))
    shuffled = {id: token for id, token in zip(ids, vocab.values(), strict=True)}
    merges = random.Random(2).sample(tokenizer.merges, len(tokenizer.merges))
    unreached = shuffled | {5000: b" unreached", 16_000_000: "wörd".encode()}
    return {
        "ranks": Tokenizer(vocab, None, SPECIAL_TOKENS, tokenizer.pattern),
        "shuffled ranks": Tokenizer(shuffled, None, SPECIAL_TOKENS, tokenizer.pattern),
        "shuffled merges": Tokenizer(shuffled, merges, SPECIAL_TOKENS, tokenizer.pattern),
        "whole words": Tokenizer(unreached, merges, SPECIAL_TOKENS, tokenizer.pattern, ignore_merges=True),
    }


def dense(pattern):
    """Ranks in which most short strings of two letters are tokens, in random order: every merge competes."""
    strings = ["".join(letters) for size in (2, 3, 4, 5) for letters in itertools.product("ab", repeat=size)]
    chosen = random.Random(3).sample(strings, 40)
    tokens = [bytes([byte]) for byte in range(256)] + [string.encode() for string in chosen]
    return Tokenizer(dict(enumerate(tokens)), None, ["<a>", "<a><b>", "<b>"], pattern)


class Checker(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.seen, self.inside, self.texts = [], "", {}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.inside = tag if tag not in ("script", "style") else f"{tag} {dict(attrs).get('type', '')}".strip()

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        self.texts[self.inside] = self.texts.get(self.inside, "") + data


def test_one_small_file_that_names_no_other(trained, tmp_path):
    page = write_page(trained, tmp_path / "deep" / "page.html")
    assert page == tmp_path / "deep" / "page.html"
    assert page.stat().st_size < 100_000
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]
    text = page.read_text("utf-8")
    assert not re.search(r"https?:|url\(|@import|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text)
    assert "{{" not in text
    checker = Checker(text)
    assert not {tag for tag, _ in checker.seen} & {"link", "iframe", "object", "embed", "img", "base", "form"}
    assert not [
        name for _, attrs in checker.seen for name in attrs if name.startswith("on") or name in ("src", "style")
    ]


def test_the_policy_allows_this_script_and_style_and_no_network(trained, tmp_path):
    checker = Checker(write_page(trained, tmp_path / "page.html").read_text("utf-8"))
    policy = next(a["content"] for _, a in checker.seen if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for element, directive in (("script", "script-src"), ("style", "style-src")):
        digest = base64.b64encode(hashlib.sha256(checker.texts[element].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy


def test_the_same_tokenizers_give_the_same_bytes(trained, tmp_path):
    first, again = (write_page(trained, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == again


def test_refuses_no_tokenizer(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer to show"):
        write_page({}, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("names", "advice"),
    [(("gpt2", "o200k"), "show fewer tokenizers on one page"), (("gpt2",), "vocabulary is too large")],
)
def test_refuses_a_page_over_the_bound_and_says_what_to_do(trained, tmp_path, monkeypatch, names, advice):
    monkeypatch.setattr("groundup.tokenizer.explorer.MAX_PAGE_BYTES", 10_000)
    with pytest.raises(ValueError, match=rf"at most 10,000 .*'gpt2' \d.*{advice}"):
        write_page({name: trained[name] for name in names}, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.slow
def test_refuses_a_vocabulary_of_incompressible_tokens(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (220_000, 8), np.uint8)
    tokens = [bytes([byte]) for byte in range(256)] + [row.tobytes() for row in noise]
    with pytest.raises(ValueError, match="at most 2,000,000"):
        write_page({"noise": Tokenizer(dict(enumerate(tokens)), [])}, tmp_path / "page.html")


def test_merges_cost_next_to_nothing(trained):
    """A merge is stored as its token and a cut: without them the pack is smaller by less than two bytes a merge."""
    tokenizer = trained["gpt2"]
    bare = Tokenizer(ordinary(tokenizer), [], SPECIAL_TOKENS)
    assert len(pack("", tokenizer)["packed"]) - len(pack("", bare)["packed"]) < 2 * len(tokenizer.merges)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_every_colour_behind_it(trained, tmp_path, scheme):
    style = Checker(write_page(trained, tmp_path / "page.html").read_text("utf-8")).texts["style"]
    light, dark = (dict(re.findall(r"(--[\w-]+): (#\w{6})", block)) for block in style.split("@media")[:2])
    colours = light if scheme == "light" else dark
    backgrounds = ["--paper", "--card", "--model-wash", *(f"--hue-{number}" for number in range(5))]
    for background in backgrounds:
        assert contrast(colours["--ink"], colours[background]) > 7, background
        assert contrast(mixed(colours["--ink"], colours[background], 0.68), colours[background]) > 4.5, background
    for text in ("--ink-soft", "--model", "--held-out"):
        assert contrast(colours[text], colours["--card"]) > 4.5, text


def contrast(one, other):
    """The ratio of WCAG 2."""
    darker, lighter = sorted(luminance(colour) for colour in (one, other))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour):
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def mixed(ink, paper, share):
    pairs = [(int(ink[at : at + 2], 16), int(paper[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


def test_ids_are_those_of_the_tokenizer_for_every_pattern(opened):
    corpus = [PROSE * 3, " ".join(FRAGMENTS)] * 2
    patterns = [*PATTERNS, "none"]
    tokenizers = {p: Tokenizer.train_from_iterator(corpus, 500, SPECIAL_TOKENS, p) for p in patterns}
    texts = awkward_texts()
    page = opened(tokenizers)
    for allowed in ((), "all"):
        found = ids_in_page(page, texts, specials=bool(allowed))
        for (name, tokenizer), ids in zip(tokenizers.items(), found, strict=True):
            assert ids == [tokenizer.encode(text, allowed) for text in texts], name
    assert page.evaluate("started.then((all) => all.map(({problem}) => problem ?? null))") == [None] * len(patterns)


def test_words_are_those_of_the_tokenizer_for_every_pattern(opened, trained):
    # Unicode versions differ between engines: characters that are older than all of them.
    old = "".join(char for char in map(chr, range(0x3000)) if unicodedata.category(char) not in ("Cn", "Cs"))
    texts = [*awkward_texts(800), "a\x85b \ufeff c\u2028", old, " ".join(old), "'".join(old)]
    page = opened({name: Tokenizer(ordinary(trained["gpt2"]), [], (), name) for name in (*PATTERNS, "none")})
    words = f"({{tokenizer}}) => {json.dumps(texts)}.map((text) => tokenizer.pieces(text).map((piece) => piece.text))"
    found = page.evaluate(f"started.then((all) => all.map({words}))")
    for name, split in zip((*PATTERNS, "none"), found, strict=True):
        assert split == [Pretokenizer(name).split(well_formed(text)) for text in texts], name


def test_ids_where_every_merge_competes(opened):
    tokenizer, draw = dense("gpt2"), random.Random(4)
    texts = ["".join(draw.choices("aab ", k=size)) for size in range(1, 200)]
    page = opened({"dense": tokenizer})
    assert ids_in_page(page, texts) == [[tokenizer.encode(text) for text in texts]]
    for text in texts[3:12]:
        assert steps_in_page(page, 0, text, tokenizer.vocab) == steps_by_scanning(tokenizer, text)


def test_the_longest_special_token_counts(opened):
    tokenizer, texts = dense("gpt2"), ["<a><b><a>", "<a><a><b><b", "<b><a>b"]
    found = ids_in_page(opened({"dense": tokenizer}), texts, specials=True)
    assert found == [[tokenizer.encode(text, "all") for text in texts]]


def test_the_page_knows_every_published_pattern(opened, trained):
    known = opened({"gpt2": trained["gpt2"]}).evaluate("Object.keys(PATTERNS)")
    assert set(known) == set(PATTERNS)


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "none"])
def test_ids_and_steps_under_every_rule_for_merging(opened, trained, pattern):
    tokenizers = variants(trained[pattern])
    texts = [*awkward_texts(60), " unreached wörd", " unreachedwörd"]
    page = opened(tokenizers)
    for (name, tokenizer), ids in zip(tokenizers.items(), ids_in_page(page, texts), strict=True):
        assert ids == [tokenizer.encode(text) for text in texts], name
    for number, (name, tokenizer) in enumerate(tokenizers.items()):
        for piece in (" hat", "the cat in the hat", " Brücke", "aaaaaaa", "你好", "👨‍👩‍👧‍👦", "a"):
            assert steps_in_page(page, number, piece, tokenizer.vocab) == steps_by_scanning(tokenizer, piece), name


def test_a_pattern_of_ones_own(opened, trained):
    patterns = [r"\d{1,2}|\s+|[^\s\d]+", r"[\p{L}\-']+|.", r"[][.!]+|[^]\S]+|\S", r"\p{L}+"]
    tokenizers = {p: Tokenizer(ordinary(trained["gpt2"]), trained["gpt2"].merges, (), p) for p in patterns}
    texts = [*awkward_texts(100), "a\x85b\u2028c\ufeffd", "[x].]y 'don't-do'\r\n٣1٤22"]
    page = opened(tokenizers)
    for (pattern, tokenizer), ids in zip(tokenizers.items(), ids_in_page(page, texts), strict=True):
        assert ids == [tokenizer.encode(text) for text in texts], pattern


def test_a_normal_form_of_text_and_bytes_without_a_token(opened, trained):
    vocab, merges = ordinary(trained["gpt2"]), trained["gpt2"].merges
    tokenizers = {
        "NFC": Tokenizer(vocab, merges, ["e\u0301"], normalizer="NFC"),
        "lacks": Tokenizer({id: token for id, token in vocab.items() if token not in (b"\x15", b"\xff")}, merges),
    }
    texts = [*awkward_texts(100), "e\u0301t\x15e", "\u212b", "\x15", "th\x15e"]
    page = opened(tokenizers)
    for allowed in ((), "all"):
        found = ids_in_page(page, texts, specials=bool(allowed))
        assert found == [[tokenizer.encode(text, allowed) for text in texts] for tokenizer in tokenizers.values()]
    enter(page, "Ae\u0301")
    assert "not compared" in page.evaluate("document.querySelector('.difference').innerText")


@pytest.mark.parametrize("pattern", [r"\p{L}++|\s+", r"\w+|\s", r"(?<!\p{L})(?>a|b)|."])
def test_a_pattern_that_javascript_lacks_is_said_to_be_one(opened, trained, pattern):
    own = Tokenizer(ordinary(trained["gpt2"]), trained["gpt2"].merges, (), pattern)
    page = opened({"own": own, "gpt2": trained["gpt2"]})
    problems = page.evaluate("Array.from(document.querySelectorAll('.problem'), (e) => e.hidden ? '' : e.innerText)")
    assert problems[0].startswith("This browser cannot run the tokenizer")
    assert problems[1] == ""
    enter(page, "the hat")
    assert shown_ids(page) == [[], trained["gpt2"].encode("the hat")]


def test_a_browser_that_splits_otherwise_is_noticed(browser, trained, tmp_path):
    page = write_page({"gpt2": trained["gpt2"]}, tmp_path / "page.html")
    text = page.read_text("utf-8")
    data = json.loads(Checker(text).texts["script application/json"])
    data[0]["check"]["ids"][0] += 1
    page.write_text(re.sub(r"(id=\"data\">).*?(</script>)", lambda m: m[1] + json.dumps(data) + m[2], text), "utf-8")
    browser.open(page)
    browser.evaluate("started")
    assert "A check failed" in browser.evaluate("document.querySelector('.problem').innerText")


def test_typing_shows_tokens_ids_and_counts(opened, trained, tmp_path):
    tokenizer = trained["gpt2"]
    page = opened({"gpt2": tokenizer})
    for text in ("the hat, 你好 🌍\n\tx", "e\u0301 \u202e\x00\ufeff '\u017f", *awkward_texts(12)[-18:-6]):
        enter(page, text)
        seen = text.replace("\r\n", "\n").replace("\r", "\n")  # as a text box does
        ids = tokenizer.encode(seen)
        assert shown_ids(page) == [ids]
        assert page.evaluate("document.querySelectorAll('.token').length") == len(ids)
        tiles = page.evaluate("Array.from(document.querySelectorAll('.tile dd'), (tile) => tile.innerText)")
        size = len(seen.encode())
        assert tiles == [str(len(seen)), str(size), str(len(ids)), f"{size / len(ids):.2f}"]
    assert page.evaluate("document.querySelector('.chooser').hidden")
    assert page.screenshot(tmp_path / "page.png").stat().st_size > 20_000


def test_whitespace_and_unseen_characters_are_made_visible(opened, trained):
    page = opened({"bytes": Tokenizer(dict(list(trained["gpt2"].vocab.items())[:256]), [], SPECIAL_TOKENS)})
    enter(page, " \t\n\x00\u4f60")
    assert page.evaluate("Array.from(document.querySelectorAll('.token'), (token) => token.textContent)") == [
        "·", "→", "↵\n", "U+0000", "E4", "BD", "A0",
    ]  # fmt: skip


def test_special_tokens_are_text_until_asked_for(opened, trained):
    tokenizer = trained["o200k"]
    page = opened({"o200k": tokenizer})
    text = "<|user|>hi<|end|><|endof"
    enter(page, text)
    assert shown_ids(page) == [tokenizer.encode(text)]
    page.click("#specials")
    assert shown_ids(page) == [tokenizer.encode(text, "all")]
    assert page.evaluate("Array.from(document.querySelectorAll('.special'), (e) => e.textContent)") == [
        "<|user|>", "<|end|>",
    ]  # fmt: skip
    page.click(".special")
    assert "never merged" in page.evaluate("document.querySelector('.remark').innerText")


def test_a_click_shows_the_merges_and_arrows_move_on(opened, trained):
    tokenizer = trained["cl100k"]
    page = opened({"cl100k": tokenizer})
    enter(page, "the Katzen")
    page.click(".token:last-child")
    expected = steps_by_scanning(tokenizer, " Katzen")
    assert len(expected) > 1
    rows = page.evaluate(
        "Array.from(document.querySelectorAll('.steps tbody tr'), (row) =>"
        " [row.cells[0].innerText, row.cells[2].innerText,"
        " ...[1, 3].map((at) => Array.from(row.cells[at].querySelectorAll('.symbol'), (s) => Number(s.dataset.id)))])"
    )
    vocab = tokenizer.vocab
    assert [
        (int(rank), *(vocab[id] for id in pair), [vocab[id] for id in after]) for _, rank, pair, after in rows[1:]
    ] == (expected)
    assert [int(step) for step, *_ in rows] == list(range(len(expected) + 1))
    ids = tokenizer.encode("the Katzen")
    for key, place in (("ArrowRight", 2), ("End", len(ids) - 1), ("Home", 0), ("ArrowLeft", 0), ("ArrowRight", 1)):
        page.press(key)
        selected = page.evaluate(
            "Array.from(document.querySelectorAll('.token'), (e) => e.ariaSelected).indexOf('true')"
        )
        assert selected == place
        assert page.evaluate("document.querySelector('.facts dd').innerText") == str(ids[place])
        assert page.evaluate("document.activeElement.ariaSelected") == "true"
        assert page.evaluate("document.querySelector('.pointed').innerText").startswith(f"id {ids[place]} ")
    assert page.evaluate("document.querySelectorAll('.token[tabindex=\"0\"]').length") == 1


def boundaries(tokenizer, text):
    ends = np.cumsum([len(tokenizer.vocab[id]) for id in tokenizer.encode(text)])
    return {int(end) for end in ends}


def marked(browser, side):
    """Where the tokens end whose boundary is marked as missing on the other side."""
    return set(
        browser.evaluate(
            f"(() => {{ const all = document.querySelectorAll('.side')[{side}].querySelectorAll('.token');"
            " return started.then((headers) => { let end = 0; const found = [];"
            f" const {{tokenizer}} = headers[document.querySelectorAll('select')[{side}].value];"
            " const ids = tokenizer.encode(document.getElementById('text').value);"
            " all.forEach((e, place) => { end += tokenizer.token(ids[place]).length;"
            " if (e.matches('.only-here')) found.push(end); }); return found; }); })()"
        )
    )


def test_side_by_side_marks_the_boundaries_that_differ(opened, trained, tmp_path):
    page = opened({name: trained[name] for name in ("gpt2", "cl100k", "none")})
    text = "It's 1999, DON'T  pay 12345\n\nÜber\t你好"
    enter(page, text)
    left, right = boundaries(trained["gpt2"], text), boundaries(trained["cl100k"], text)
    assert left - right
    assert right - left
    assert (marked(page, 0), marked(page, 1)) == (left - right, right - left)
    words = page.evaluate("Array.from(document.querySelectorAll('.difference'), (e) => e.innerText)")
    assert [int(words[side].split()[0]) for side in (0, 1)] == [len(left - right), len(right - left)]
    page.screenshot(tmp_path / "page.png")
    choose = "const s = document.querySelectorAll('select')[1]; s.value = '{}'; s.dispatchEvent(new Event('change'));"
    page.evaluate(choose.format(2))
    assert shown_ids(page) == [trained["gpt2"].encode(text), trained["none"].encode(text)]
    ids = json.dumps(trained["none"].encode(text))
    nodes = f"({{tokenizer}}) => {ids}.map((id) => element('b', '', visible(tokenizer.token(id))).textContent)"
    assert page.evaluate("Array.from(document.querySelectorAll('.side:last-child .token'), (e) => e.textContent)") == (
        page.evaluate(f"started.then((all) => ({nodes})(all[2]))")
    )
    page.evaluate(f"{{ {choose.format(0)} }}")
    assert marked(page, 0) == marked(page, 1) == set()


def test_another_tokenizer_redraws_a_token_of_the_same_id(opened):
    vocab = dict(enumerate(bytes([byte]) for byte in range(256)))
    page = opened({token.decode(): Tokenizer(vocab | {256: token}, None) for token in (b"abc", b"ab")})
    enter(page, "abc")
    choose = "{ const s = document.querySelector('select'); s.value = '1'; s.dispatchEvent(new Event('change')); }"
    tokens = "Array.from(document.querySelector('.side').querySelectorAll('.token'), (token) => token.textContent)"
    assert page.evaluate(tokens) == ["abc"]
    page.evaluate(choose)
    assert page.evaluate(tokens) == ["ab", "c"]


def test_the_other_side_follows_a_choice(opened, trained):
    page = opened({name: trained[name] for name in ("gpt2", "cl100k")})
    enter(page, "pay 12345 more")
    page.click(".side:last-child .token:last-child")
    texts = page.evaluate("Array.from(document.querySelectorAll('.facts'), (e) => e.children[5].textContent)")
    assert texts == ["·more", "·more"]


def test_a_long_text_is_counted_whole_and_drawn_in_part(opened, trained):
    page = opened({name: trained[name] for name in ("gpt2", "none")})
    text = (PROSE * 70)[:20_000].replace("\r\n", "\n")
    enter(page, text)
    ids = trained["gpt2"].encode(text)
    assert shown_ids(page) == [ids, trained["none"].encode(text)]
    assert page.evaluate("document.querySelector('.side').querySelectorAll('.token').length") == 2000
    line = page.evaluate("document.querySelector('.hidden').innerText")
    assert int(re.sub(r"\D", "", line)) == len(ids) - 2000
    assert page.evaluate("document.querySelectorAll('.steps tbody tr').length") <= 202
    page.evaluate("document.getElementById('text').select()")
    page.press("Delete")
    assert shown_ids(page) == [[], []]
    assert page.evaluate("document.querySelectorAll('.token').length") == 0
    assert page.evaluate("document.querySelector('.detail').hidden")


def test_text_of_a_tokenizer_is_only_text(opened, trained):
    vocab = ordinary(trained["gpt2"])
    page = opened(
        {EVIL: Tokenizer(vocab, trained["gpt2"].merges, [EVIL, "<!--<script>", "\u2028"]), "b": trained["none"]}
    )
    page.click("#specials")
    enter(page, f"a{EVIL}b<!--<script>")
    assert shown_ids(page)[0] == [97, len(vocab), 98, len(vocab) + 1]
    assert page.evaluate("document.title") == "Token explorer"
    assert page.evaluate("document.querySelectorAll('img, #sides script').length") == 0
    assert page.evaluate("document.querySelector('option').textContent") == EVIL


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_every_width(opened, trained, tmp_path, width, scheme):
    page = opened({name: trained[name] for name in ("gpt2", "o200k")})
    page.look(width, scheme=scheme)
    enter(page, PROSE + "x" * 300)
    shown_ids(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    unnamed = page.evaluate(
        "Array.from(document.querySelectorAll('input, select, textarea, button'))"
        ".filter((e) => !e.labels?.length && !e.textContent.trim()).length"
    )
    assert unnamed == 0
    assert page.screenshot(tmp_path / f"{width}-{scheme}.png").stat().st_size > 20_000


@pytest.mark.slow
@pytest.mark.parametrize("name", VOCABULARIES)
def test_real_vocabularies_give_their_ids(opened, tmp_path, name):
    folder = os.environ.get("GROUNDUP_VOCABULARIES")
    if not folder or not (Path(folder) / name).exists():
        pytest.skip(f"no {name} in the folder that GROUNDUP_VOCABULARIES names")
    tokenizer = Tokenizer.load(Path(folder) / name)
    page = opened({name: tokenizer})
    assert (tmp_path / "page.html").stat().st_size < MAX_PAGE_BYTES
    texts = awkward_texts()
    for allowed in ((), "all"):
        assert ids_in_page(page, texts, specials=bool(allowed)) == [[tokenizer.encode(text, allowed) for text in texts]]
    for piece in (" tokenization", "Brücke", "12345", " 你好", "        "):
        assert steps_in_page(page, 0, piece, tokenizer.vocab) == steps_by_scanning(tokenizer, piece)
    enter(page, "It's 1999, hello  world")
    assert shown_ids(page) == [tokenizer.encode("It's 1999, hello  world")]


@pytest.mark.slow
def test_two_large_vocabularies_fit_one_page(tmp_path):
    folder = os.environ.get("GROUNDUP_VOCABULARIES")
    names = "gpt2", "cl100k_base.tiktoken"
    if not folder or not all((Path(folder) / name).exists() for name in names):
        pytest.skip("no gpt2 and cl100k_base.tiktoken in the folder that GROUNDUP_VOCABULARIES names")
    page = write_page({name: Tokenizer.load(Path(folder) / name) for name in names}, tmp_path / "page.html")
    assert page.stat().st_size < MAX_PAGE_BYTES / 2
