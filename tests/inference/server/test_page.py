"""The page in a real browser: chat, probabilities, the explorer, statistics; and that text is only ever text."""

import math
import re
import time
from pathlib import Path

import pytest

from groundup.gguf import GGUFFile
from groundup.inference import Engine
from groundup.inference.server import Keys, Settings
from groundup.inference.server.page import chat_page
from groundup.model.gguf import load_gguf
from groundup.tokenizer import Tokenizer
from groundup.tokenizer.template import ChatTemplate
from tests.browser import CHROMIUM, NO_CHROMIUM, running
from tests.inference.server.conftest import KEY
from tests.inference.server.serving import new_engine, running_server
from tests.model.models import path_of

PAYLOADS = (
    "<img src=x onerror=\"document.title='forged'\">",
    "<script>document.title='forged'</script>",
    "</div></article><iframe src='javascript:parent.document.title=1'></iframe>",
    "[link](javascript:alert(1)) ![pixel](http://evil.example/x.png)",
    "<svg onload=document.title='forged'><style>*{display:none}</style>",
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip(NO_CHROMIUM)
    with running(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(chromium, server):
    """The page of a small model; nothing may be complained of, and nothing asked of any other place."""
    chromium.look(1280)
    chromium.open(f"{server.url}/")
    wait(chromium, "document.getElementById('model').textContent === 'tiny'")
    yield chromium
    assert chromium.complaints == []
    foreign = [url for url in chromium.requests if not url.startswith((server.url, "data:", "about:srcdoc"))]
    assert foreign == []


def wait(browser, condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not browser.evaluate(condition):
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)


def ask(browser, text, seconds=60):
    browser.click("#message")
    browser.type(text)
    browser.press("Enter")
    wait(browser, "document.querySelector('.turn.model') !== null")
    wait(browser, "document.querySelector('.busy') === null", seconds)


def setting(browser, name, value):
    browser.evaluate(f"document.getElementById('{name}').value = '{value}'")


def answer(browser):
    return browser.evaluate("Array.from(document.querySelectorAll('.turn.model .said')).at(-1).textContent")


def test_the_page_is_one_small_file_with_its_own_policy():
    page, policy = chat_page()
    assert len(page) < 60_000
    assert not re.search(r"https?:|url\(|@import|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", page)
    assert "{{" not in page
    assert not re.search(r"<[^>]+\s(on\w+|style|src)=", page)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_chat_streams_what_the_engine_says(page, engine):
    setting(page, "temperature", 0)
    setting(page, "max-tokens", 12)
    ask(page, "the cat")
    first = engine.chat([{"role": "user", "content": "the cat"}], max_tokens=12, temperature=0)
    assert answer(page) == first.text
    assert f"{len(first.tokens)} tokens" in page.evaluate("document.querySelector('.note').textContent")
    ask(page, "a bat")
    turns = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": first.text}]
    second = engine.chat([*turns, {"role": "user", "content": "a bat"}], max_tokens=12, temperature=0)
    assert answer(page) == second.text
    page.click("#forget")
    assert page.evaluate("document.querySelectorAll('.turn').length") == 0


def test_pointing_at_a_token_tells_its_probability(page, engine):
    setting(page, "temperature", 0)
    setting(page, "max-tokens", 12)
    ask(page, "the cat")
    ours = engine.chat([{"role": "user", "content": "the cat"}], max_tokens=12, temperature=0, logprobs=5)
    box = page.evaluate("(({x, y, width, height}) => [x + width / 2, y + height / 2])"
                        "(document.querySelectorAll('.token')[1].getClientRects()[0])")  # fmt: skip
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    wait(page, "!document.getElementById('tip').hidden")
    shares = page.evaluate("Array.from(document.querySelectorAll('#tip .share'), (e) => parseFloat(e.textContent))")
    at = page.evaluate("Array.from(document.querySelectorAll('.token')).indexOf(document.querySelector('.at'))")
    assert at == 1
    stream = engine.tokenizer.stream()  # a token that ends no character has no place in the page
    shown = [entry for entry in ours.logprobs if stream.push(entry.token)]
    expected = [100 * math.exp(logprob) for _, logprob in shown[1].top]
    assert shares == pytest.approx(expected, abs=0.06)
    page.evaluate("document.querySelector('.said[tabindex]').focus()")
    for key, place in (("End", -1), ("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1)):
        page.press(key)
        assert page.evaluate(f"Array.from(document.querySelectorAll('.token')).at({place}).matches('.at')")
    assert "%" in page.evaluate("document.getElementById('spoken').textContent")
    page.press("Escape")
    assert page.evaluate("document.getElementById('tip').hidden")


def test_stop_frees_the_engine(page, server):
    setting(page, "max-tokens", 200)
    page.evaluate("{ events = ((original) => async function* (path, body, signal) {"
                  " yield* original(path, {...body, logit_bias: {99: 100}}, signal); })(events); }")  # fmt: skip
    page.click("#message")
    page.type("the cat")
    page.press("Enter")
    wait(page, "document.querySelectorAll('.token').length > 3")
    page.click("#stop")
    wait(page, "document.querySelector('.busy') === null")
    server.wait_until_idle()
    assert page.evaluate("document.querySelector('.note').textContent").endswith("stopped")
    assert page.evaluate("document.querySelectorAll('.token').length") < 200


@pytest.mark.parametrize("payload", PAYLOADS)
def test_markup_is_only_text(page, payload):
    setting(page, "max-tokens", 4)
    title = page.evaluate("document.title")
    page.evaluate(f"""{{ events = async function* () {{
        yield {{choices: [{{delta: {{content: {payload!r}}}, finish_reason: "stop", logprobs: {{content: [{{
            token: {payload!r}, bytes: Array.from(new TextEncoder().encode({payload!r})), logprob: -1,
            top_logprobs: [{{token: {payload!r}, logprob: -1}}]}}]}}}}]}}; }}; }}""")
    ask(page, payload)
    page.evaluate("showTip(document.querySelector('.token'))")
    assert answer(page) == payload
    assert page.evaluate("document.querySelector('.turn.user .said').textContent") == payload
    assert page.evaluate("document.querySelectorAll('.log, .tip').length") == 2
    assert page.evaluate("document.querySelectorAll(':is(.log, .tip) :is(img, svg, iframe, script, a)').length") == 0
    assert page.evaluate("document.title") == title


def test_an_error_is_told_and_the_question_taken_back(page):
    ask(page, "the cat " * 300)
    assert "do not fit the model's context" in page.evaluate("document.getElementById('problem').textContent")
    assert [text for text in page.complaints if "400" not in text] == []  # which the browser reports itself
    page.complaints.clear()
    setting(page, "max-tokens", 3)
    ask(page, "the cat")
    assert page.evaluate("document.getElementById('problem').hidden")


def test_the_explorer_and_the_statistics(page, server):
    page.click("#tab-tokens")
    wait(page, "document.querySelector('iframe') !== null")
    assert page.evaluate("document.querySelector('iframe').getAttribute('sandbox')") == "allow-scripts"
    assert "Token explorer" in page.evaluate("document.querySelector('iframe').srcdoc")
    page.click("#tab-engine")
    server.post("/v1/completions", {"prompt": "a", "max_tokens": 8})
    total = server.service.stats().generated_tokens
    wait(page, f"document.getElementById('totals').textContent.includes('generated tokens{total:,}')")
    pages = server.service.stats().pages_total
    counts = page.evaluate("['used', 'cached', 'free'].map((n) => Number(byId(`n-${n}`).textContent.replace(',', '')))")
    assert sum(counts) == pages
    page.evaluate("byId('tab-engine').focus()")
    page.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-chat"
    assert not page.evaluate("byId('view-chat').hidden")


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_every_width(page, tmp_path, width, scheme):
    page.look(width, scheme=scheme)
    setting(page, "max-tokens", 40)
    ask(page, "x" * 120)
    page.click("#open-settings")
    for view in ("chat", "engine", "tokens"):
        page.click(f"#tab-{view}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    unnamed = page.evaluate(
        "Array.from(document.querySelectorAll('input, textarea, button'))"
        ".filter((e) => !e.labels?.length && !e.textContent.trim()).length"
    )
    assert unnamed == 0
    assert page.screenshot(tmp_path / f"{width}-{scheme}.png").stat().st_size > 5_000


def test_a_key_is_asked_for(chromium):
    with running_server(new_engine(), Settings(model_name="tiny"), Keys([KEY])) as server:
        chromium.look(1280)
        chromium.open(f"{server.url}/")
        wait(chromium, "byId('pulse-text').textContent === 'needs a key'")
        chromium.evaluate("byId('settings').hidden = false")
        chromium.click("#key")
        chromium.type(KEY)
        chromium.click("#message")
        wait(chromium, "byId('model').textContent === 'tiny'")
        setting(chromium, "max-tokens", 3)
        ask(chromium, "the cat")
        assert "3 tokens" in chromium.evaluate("document.querySelector('.note').textContent")
        chromium.open("about:blank")  # which forgets that the browser reported the 401


def test_a_model_without_conversations_continues_a_text(chromium):
    engine = new_engine(specials=["<|endoftext|>"])
    expected = engine.generate("the cat", max_tokens=6, temperature=0).text
    with running_server(engine, Settings(model_name="base")) as server:
        chromium.open(f"{server.url}/")
        wait(chromium, "byId('model').textContent === 'base'")
        setting(chromium, "temperature", 0)
        setting(chromium, "max-tokens", 6)
        ask(chromium, "the cat")
        assert answer(chromium) == expected
        assert "tokens" in chromium.evaluate("document.querySelector('.note').textContent")
        assert chromium.complaints == []
        chromium.open("about:blank")


@pytest.mark.slow
def test_a_published_model_answers_in_the_page(chromium, tmp_path):
    path: Path = path_of("smollm2.gguf")
    with GGUFFile(path) as file:
        template = ChatTemplate(file.metadata["tokenizer.chat_template"])
        end = file.metadata["tokenizer.ggml.eos_token_id"]
    engine = Engine(load_gguf(path), Tokenizer.load(path), chat_template=template, end_ids=[end])
    with running_server(engine, Settings(model_name="SmolLM2")) as server:
        chromium.open(f"{server.url}/")
        wait(chromium, "byId('model').textContent === 'SmolLM2'")
        setting(chromium, "temperature", 0)
        setting(chromium, "max-tokens", 20)
        ask(chromium, "What is the capital of France?", 120)
        assert answer(chromium) == "The capital of France is Paris."
        assert chromium.complaints == []
        assert chromium.screenshot(tmp_path / "page.png").stat().st_size > 5_000
        chromium.open("about:blank")
