r"""Strings that tokenizers get wrong, made at random: the same ones for the same seed.

What comes out depends on the version of Python too, whose Unicode tables sort the code points into categories.
There are no surrogates: no UTF-8 text has them, and the reference implementations each treat them in their own way.
"""

import functools
import random
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from tests.tokenizer.awkward import FRAGMENTS

# Every code point that \s matches; the common ones several times, since most of the rules are about them.
WHITE = (
    " " * 24
    + "\n" * 10
    + "\t\t\t\r\r\r\r\x0b\x0c\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
    + "".join(map(chr, range(0x2000, 0x200B)))
)
NOT_QUITE_WHITE = "\u200b\u200c\u200d\u2060\ufeff\u180e\x1c\x1d\x1e\x1f\x00\x08\xad"
APOSTROPHES = "''''''''\u2019\u02bc\uff07`\u2032"
CONTRACTED = ("s", "t", "d", "m", "ll", "ve", "re", "\u017f", "l", "v", "r", "st", "\u017ft", "\ufb06", "sll", "\u0149")
DIGITS = (
    "0123456789" * 3 + "\u0663\u06f4\u0967\u09ea\u0e53\uff15\U0001d7d9\U0001e951\u00bd\u00b2\u2167\u3007\u4e00\u2460"
)
EMOJI = "🌍👩👨👧💻🚀❤☺🏳🌈👍🇩🇪🇯🇵🫠🧑🏽🏿#*1"
JOINERS = "\u200d\ufe0f\ufe0e\u20e3\U0001f3fd\U000e0067\U000e007f"
CASED = "aAbBzZéÉßẞıİσΣςǅǆǄʰªжЖԱաაᲐꭰᏜ"
RIGHT_TO_LEFT = "שלוםأهلاًوسهلاסܐߊࠀ\u200f\u200e\u202e\u2067\u2069\u05b0\u0651"
CJK = "你好世界中文字々〇ぁあアｱー한국어가각㐀𠀀𪜀豈\u3000。、「」"
JAMO = "".join(map(chr, (*range(0x1100, 0x1113), *range(0x1161, 0x1176), *range(0x11A8, 0x11C3), 0xAC00, 0xD7A3)))
MARKS = (
    "\u0300\u0301\u0308\u0316\u0327\u0334\u0345\u0488\u05b0\u064b\u093c\u094d\u0e38\u1ab0\u20d0\u3099\ufe20\U0001d165"
)
SPECIAL_LIKE = (
    *("<|endoftext|>", "<|fim_prefix|>", "<|endofprompt|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|"),
    *(
        "<|eot_id|>",
        "<|start_header_id|>",
        "<tool_call>",
        "<repo_name>",
        "</s>",
        "<s>",
        "[INST]",
        "|>",
        "<unk>",
        "<0x0A>",
    ),
)
SEED_TEXT = (
    "It's 1999, and the cat isn't in the hat; they'll pay $1,000.50  or MORE! We've said: \"don't\u2026\u201d\n\n"
    "Über die Brücke gehen zwölf große Katzen; où est l'été, à Noël?  ¿Dónde está el niño?  Iğdır'ın ışığı.\r\n"
    "Съешь ещё этих мягких французских булок, да выпей же чаю. Ξεσκεπάζω τὴν ψυχοφθόρα βδελυγμία. Հայերեն ქართული\n"
    "你好，世界。今日は良い天気ですね、東京タワー。안녕하세요 세계! नमस्ते दुनिया, १२३। ไทยไม่มีช่องว่าง ភាសាខ្មែរ မြန်မာ\n"
    "مرحبا بالعالم ١٢٣، שָׁלוֹם עֲלֵיכֶם (2024) فارسی\u200cها. Tiếng Việt có dấu, čeština, Polski żółw, ISO-8859-1.\n"
    "\tdef f(x: int) -> float:\n\t\treturn x**2 if x >= 0 else -1e-9  # TODO(me): fix\r\n\r\n"
    '{"key": [1, 2.5, null], "url": "https://example.org/a/b?c=d&e=%20#f"}\n<p class="x">&nbsp;</p>\n    \n'
    "camelCaseHTTPServer snake_case_name CONSTANT_VALUE 3.14159 0xDEADBEEF v1.2.3-rc4 /lib//x\n/\n 🌍👨‍👩‍👧‍👦 ❤️ 👍🏽\n"
)  # fmt: skip
LONGEST_REPEAT = 5_000


def fuzzed_strings(seed: int, count: int) -> Iterator[str]:
    """`count` strings of mostly 0 to 200 characters; one in some thousands is a run of up to 5,000 times the same."""
    draw = random.Random(seed)
    kinds = _kinds()
    for _ in range(count):
        yield _string(draw, kinds)


Kind = Callable[[random.Random], str]


def _string(draw: random.Random, kinds: Sequence[Kind]) -> str:
    parts = [draw.choice(kinds)(draw) for _ in range(int(0.9 + 14 * draw.random() ** 1.5))]
    chance = draw.random()
    if chance < 0.2:
        parts.append(_white(draw))
    elif chance < 0.3:
        parts.insert(0, _white(draw))
    elif chance < 0.3005:
        parts.append(_any_character(draw) * draw.randrange(300, LONGEST_REPEAT))
    return "".join(parts)


@functools.cache
def _kinds() -> tuple[Kind, ...]:
    """Makers of parts of strings; one that is there twice is drawn twice as often."""
    pools = (DIGITS, EMOJI + JOINERS, RIGHT_TO_LEFT, CJK, JAMO, MARKS, NOT_QUITE_WHITE, "/\n\r /", CASED)
    mixed = (functools.partial(_some, pool) for pool in (*pools, *_categories().values()))
    common = (_white, _slice, _mutated, _contraction, _ascii, _words)
    rare = (_any_code_points, _stacked, _zwj_sequence, _repeated, _special_like, _slashes, _fragment, _after_space)
    return (*mixed, *common * 6, *rare * 3)


@functools.cache
def _categories() -> dict[str, str]:
    """General category -> its characters."""
    found: dict[str, list[str]] = {}
    for character in map(chr, (*range(0xD800), *range(0xE000, 0x110000))):
        found.setdefault(unicodedata.category(character), []).append(character)
    return {category: "".join(characters) for category, characters in sorted(found.items())}


def _some(pool: str, draw: random.Random) -> str:
    return "".join(draw.choices(pool, k=int(1 + 6 * draw.random())))


def _any_character(draw: random.Random) -> str:
    return draw.choice(draw.choice(tuple(_categories().values())))


def _any_code_points(draw: random.Random) -> str:
    codes = (int(0x10F800 * draw.random()) for _ in range(int(1 + 5 * draw.random())))
    return "".join(chr(code if code < 0xD800 else code + 0x800) for code in codes)


def _white(draw: random.Random) -> str:
    if draw.random() < 0.3:
        return draw.choice(
            (" ", "  ", "\n", "\r\n", " \n", "\n ", "\r\n\r\n", "\n\n  ", " \r", "\t\t", "\u3000 ", " \xa0")
        )
    return "".join(draw.choices(WHITE, k=int(1 + 7 * draw.random())))


def _slice(draw: random.Random) -> str:
    start = int(len(SEED_TEXT) * draw.random())
    return SEED_TEXT[start : start + int(1 + 40 * draw.random())]


def _mutated(draw: random.Random) -> str:
    text = _slice(draw)
    place = int(len(text) * draw.random())
    change = draw.random()
    if change < 0.3:
        return text[:place] + text[place + 1 :]
    if change < 0.6:
        return text[:place] + _any_character(draw) + text[place + (change < 0.45) :]
    if change < 0.7:
        return text[place:] + text[:place]
    return draw.choice((str.upper, str.lower, str.title, str.swapcase))(text)


def _contraction(draw: random.Random) -> str:
    letters = "".join(draw.choice((str.upper, str.lower))(c) if c != "\u017f" else c for c in draw.choice(CONTRACTED))
    before = draw.choice(("", "", "I", "we", "DON", " ", "é", "你", "1", "!", "'", "\u0301"))
    return before + draw.choice(APOSTROPHES) + letters + draw.choice(("", "", " ", "x", "E", "'s", "1", "\u0301"))


def _ascii(draw: random.Random) -> str:
    return "".join(map(chr, draw.choices(range(128), k=int(1 + 12 * draw.random()))))


def _words(draw: random.Random) -> str:
    letters = "".join(draw.choices("etaoinshrdluETAOIN", k=int(1 + 10 * draw.random())))
    return draw.choice((" ", "", "", "\n", "_", "\u00a0")) + letters


def _stacked(draw: random.Random) -> str:
    return draw.choice("aZé你1 !\n") + "".join(draw.choices(MARKS, k=int(1 + 8 * draw.random())))


def _zwj_sequence(draw: random.Random) -> str:
    return draw.choice(JOINERS[:2]).join(draw.choices(EMOJI, k=int(1 + 4 * draw.random())))


def _repeated(draw: random.Random) -> str:
    unit = draw.choice(
        (" ", "\n", "\t", "a", "A", "1", "!", "'s", "\r\n", " \n", "é", "\u0301", "aA", "/", "=", "你", "🌍")
    )
    return unit * int(2 + 200 * draw.random() ** 4)


def _special_like(draw: random.Random) -> str:
    return draw.choice(SPECIAL_LIKE)


def _slashes(draw: random.Random) -> str:
    return draw.choice("!.a1 )") + "".join(draw.choices("//\n\n\r \\", k=int(1 + 6 * draw.random())))


def _fragment(draw: random.Random) -> str:
    return draw.choice(FRAGMENTS)


def _after_space(draw: random.Random) -> str:
    return " " + _any_character(draw)
