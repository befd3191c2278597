r"""The grammar of JSON: strings with their escapes, numbers, and values inside values (RFC 8259).

Between tokens of JSON there is nothing, one space, or a line feed and up to 16 spaces: enough for compact and for
indented text, and no room for a model that writes spaces for ever. Characters of strings are written as they are,
or with the escapes that have a letter; control characters, which must be escaped, can also be `\u00XX`.
"""

import json

from groundup.inference.constraint.grammar import (
    EMPTY,
    Call,
    Characters,
    Grammar,
    Options,
    Part,
    Ranges,
    Repeat,
    Series,
    negated,
    optional,
    ranges_of,
    text,
)

QUOTE, BACKSLASH = 34, 92
ESCAPES = {34: '\\"', 92: "\\\\", 8: "\\b", 12: "\\f", 10: "\\n", 13: "\\r", 9: "\\t"}
PLAIN = negated(ranges_of([(0, 31), (QUOTE, QUOTE), (BACKSLASH, BACKSLASH)]))
"""What a string holds as it is."""

DIGIT = Characters(((48, 57),))
POSITIVE = Series((Characters(((49, 57),)), Repeat(DIGIT, 0, None)))
NATURAL = Options((text("0"), POSITIVE))
INTEGER = Series((optional(text("-")), NATURAL))
FRACTION = optional(Series((text("."), Repeat(DIGIT, 1, None))))
EXPONENT = optional(
    Series((Characters(((69, 69), (101, 101))), optional(Characters(((43, 43), (45, 45)))), Repeat(DIGIT, 1, None)))
)

SPACE, CHARACTER, STRING, VALUE = (Call(name) for name in ("space", "character", "string", "value"))
COMMA, COLON = Series((text(","), SPACE)), Series((text(":"), SPACE))


def basic_rules() -> Grammar:
    """The rules "space", "character", "string" and "value" (any JSON)."""
    space = Options((EMPTY, text(" "), Series((text("\n"), Repeat(text(" "), 0, 16)))))
    return {
        "space": space,
        "character": escaped(((0, 0x10FFFF),)),
        "string": quoted(Repeat(CHARACTER, 0, None)),
        "value": Options((any_object(), any_array(), STRING, number(), text("true"), text("false"), text("null"))),
    }


def spelled(value: object, at: str) -> str:
    """A value in its compact spelling. ValueError, with the place, for a number that JSON has not."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise ValueError(f"json_schema: at {at}: {error}") from error


def quoted(content: Part) -> Part:
    return Series((text('"'), content, text('"')))


def escaped(ranges: Ranges) -> Part:
    """One character of the ranges as a string of JSON spells it."""
    plain = ranges_of(
        (max(low, first), min(high, last))
        for low, high in ranges
        for first, last in PLAIN
        if max(low, first) <= min(high, last)
    )
    special = [code for code in (*range(32), QUOTE, BACKSLASH) if any(low <= code <= high for low, high in ranges)]
    letters = tuple(text(ESCAPES[code]) for code in special if code in ESCAPES)
    numbers = tuple(text(f"\\u{code:04x}") for code in special if code not in ESCAPES)
    return Options((Characters(plain), *letters, *numbers))


def in_string(part: Part) -> Part:
    """A grammar of plain text as the grammar of its spelling inside a string."""
    match part:
        case Characters():
            return escaped(part.ranges)
        case Series():
            return Series(tuple(in_string(inner) for inner in part.parts))
        case Options():
            return Options(tuple(in_string(inner) for inner in part.options))
        case Repeat():
            return Repeat(in_string(part.part), part.at_least, part.at_most)
    return part


def number() -> Part:
    return Series((INTEGER, FRACTION, EXPONENT))


def any_object() -> Part:
    return object_of(listed(Series((STRING, COLON, VALUE)), 0, None))


def any_array() -> Part:
    return array_of(listed(VALUE, 0, None))


def object_of(members: Part) -> Part:
    return Series((text("{"), SPACE, members, SPACE, text("}")))


def array_of(items: Part) -> Part:
    return Series((text("["), SPACE, items, SPACE, text("]")))


def listed(item: Part, at_least: int, at_most: int | None) -> Part:
    """So many items with commas between them."""
    if at_most == 0:
        return EMPTY
    more = Repeat(Series((COMMA, item)), max(at_least - 1, 0), None if at_most is None else at_most - 1)
    some = Series((item, more))
    return some if at_least else optional(some)


def integer_between(low: int | None, high: int | None) -> Part:
    """Whole numbers from `low` to `high`, either of them None for no bound. No number where low > high."""
    options: list[Part] = []
    if low is None or low < 0:
        least_size = 1 if high is None or high >= 0 else -high
        most_size = None if low is None else -low
        options.append(Series((text("-"), _naturals(least_size, most_size))))
    if high is None or high >= 0:
        options.append(_naturals(max(low or 0, 0), high))
    return Options(tuple(options))


def _naturals(low: int, high: int | None) -> Part:
    """Digits of whole numbers from low >= 0 to high, by number of digits."""
    if high is None:
        longer = Series((Characters(((49, 57),)), Repeat(DIGIT, len(str(low)), None)))
        return Options((_naturals(low, 10 ** len(str(low)) - 1), longer))
    options = []
    for length in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (length - 1) if length > 1 else 0)
        last = min(high, 10**length - 1)
        if first <= last:
            options.append(_same_length(str(first), str(last)))
    return Options(tuple(options))


def _same_length(low: str, high: str) -> Part:
    """Digits between two numbers of one length: those that begin like the bounds, and all in between."""
    if low == "0" * len(low) and high == "9" * len(high):
        return Repeat(DIGIT, len(low), len(low))
    first, last = int(low[0]), int(high[0])
    if len(low) == 1:
        return Characters(((48 + first, 48 + last),))
    rest = len(low) - 1
    if first == last:
        return Series((text(low[0]), _same_length(low[1:], high[1:])))
    options: list[Part] = [Series((text(low[0]), _same_length(low[1:], "9" * rest)))]
    if last - first > 1:
        options.append(Series((Characters(((49 + first, 47 + last),)), Repeat(DIGIT, rest, rest))))
    options.append(Series((text(high[0]), _same_length("0" * rest, high[1:]))))
    return Options(tuple(options))
