r"""Regular expressions as grammars: read by a parser of our own, and matched without backtracking.

    .  [abc]  [^a-z]  \d \D \w \W \s \S  \n \t \r \f \v \0  \xHH \uHHHH \UHHHHHHHH  \. and other punctuation
    ab   a|b   (a)   (?:a)   (?P<name>a)   a*  a+  a?  a{3}  a{3,}  a{,5}  a{3,5}, also lazy (a*?): the same texts

A pattern is for the whole text, so `^` and `\A` where an alternative begins and `$` and `\Z` where it ends change
nothing. Classes are those of Python's `re.ASCII`; `.` is any character but a line feed. The rest is refused by name:
look-around, references to groups, flags, word boundaries, possessive and nested repetition, anchors elsewhere, more
than 1,000 repetitions of a part.
"""

import string

from groundup.inference.constraint.grammar import (
    EMPTY,
    LAST,
    MAX_DEPTH,
    MAX_REPEAT,
    Budget,
    Characters,
    Options,
    Part,
    Ranges,
    Repeat,
    Series,
    negated,
    ranges_of,
    text,
)

DIGITS = ((48, 57),)
WORDS = ((48, 57), (65, 90), (95, 95), (97, 122))
SPACES = ((9, 13), (32, 32))
CLASSES: dict[str, Ranges] = {
    "d": DIGITS,
    "w": WORDS,
    "s": SPACES,
    "D": negated(DIGITS),
    "W": negated(WORDS),
    "S": negated(SPACES),
}
CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a", "0": "\0"}
HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
ANY = negated(((10, 10),))
ANYTHING = Repeat(Characters(((0, LAST),)), 0, None)


def regex_part(pattern: str, budget: Budget, search: bool = False) -> Part:
    """The texts that the pattern matches as a whole, or with `search` those that have a match in them.

    Raises ValueError where the pattern is wrong or not supported, with the place.
    """
    parser = _Parser(pattern, budget, search)
    part = parser.alternatives(0)
    if parser.at < len(pattern):
        raise parser.error("unbalanced ')'")
    return part


class _Parser:
    """Recursive descent over the pattern; `at` is the place of the next character."""

    def __init__(self, pattern: str, budget: Budget, search: bool) -> None:
        self.pattern, self.at, self._budget = pattern, 0, budget
        self._around = ANYTHING if search else EMPTY

    def error(self, what: str) -> ValueError:
        return ValueError(f"regex: {what}, at character {self.at} of {self.pattern!r:.80}")

    def alternatives(self, depth: int) -> Part:
        if depth > MAX_DEPTH:
            raise self.error(f"groups in groups, deeper than {MAX_DEPTH}")
        part = self._series if depth else self._anchored
        options = [part(depth)]
        while self.skip("|"):
            options.append(part(depth))
        return options[0] if len(options) == 1 else Options(tuple(options))

    def _anchored(self, depth: int) -> Part:
        """An alternative of the whole pattern, which may be tied to the ends of the text."""
        before = EMPTY if self.skip("^", "\\A") else self._around
        part = self._series(depth)
        after = EMPTY if self.skip("$", "\\Z") else self._around
        return part if before is after is EMPTY else Series((before, part, after))

    def skip(self, *texts: str) -> bool:
        """Pass one of the texts if it is next."""
        found = next((t for t in texts if self.pattern.startswith(t, self.at)), "")
        self.at += len(found)
        return bool(found)

    def _take(self, what: str) -> str:
        if self.at >= len(self.pattern):
            raise self.error(f"the pattern ends where {what} is expected")
        self.at += 1
        return self.pattern[self.at - 1]

    def _series(self, depth: int) -> Part:
        parts: list[Part] = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            self._budget.check()
            if depth == 0 and self._at_anchor():
                break
            parts.append(self._repeated(self._atom(depth)))
        return parts[0] if len(parts) == 1 else Series(tuple(parts))

    def _at_anchor(self) -> bool:
        """Whether here stands an anchor at the end of an alternative."""
        length = next((len(sign) for sign in ("$", "\\Z") if self.pattern.startswith(sign, self.at)), 0)
        return bool(length) and self.pattern[self.at + length : self.at + length + 1] in ("", "|")

    def _atom(self, depth: int) -> Part:
        character = self._take("something to match")
        match character:
            case "(":
                return self._group(depth)
            case "[":
                return Characters(self._class())
            case ".":
                return Characters(ANY)
            case "\\":
                return Characters(ranges_of(self._escape()))
            case "^" | "$":
                self.at -= 1
                raise self.error(
                    f"{character!r} inside; the pattern is for the whole text (\\{character} for the sign)"
                )
            case "*" | "+" | "?" | "{" | "}":
                self.at -= 1
                raise self.error(f"{character!r} has nothing to repeat (\\{character} for the sign)")
        return text(character)

    def _group(self, depth: int) -> Part:
        if self.skip("?P<"):
            name = self.pattern[self.at : self.at + 64].partition(">")[0]
            if not name.isidentifier():
                raise self.error("a group's name is no identifier")
            self.at += len(name) + 1
        elif not self.skip("?:") and self.pattern.startswith("?", self.at):
            raise self.error("look-around, flags and other extensions (?...) are not supported")
        part = self.alternatives(depth + 1)
        if not self.skip(")"):
            raise self.error("')' is missing")
        return part

    def _repeated(self, part: Part) -> Part:
        bounds = self._bounds()
        if bounds is None:
            return part
        self.skip("?")
        if self.at < len(self.pattern) and self.pattern[self.at] in "*+?{":
            raise self.error("a repetition of a repetition, or a possessive one, is not supported; use a group")
        return Repeat(part, *bounds)

    def _bounds(self) -> tuple[int, int | None] | None:
        for sign, bounds in {"*": (0, None), "+": (1, None), "?": (0, 1)}.items():
            if self.skip(sign):
                return bounds
        if not self.skip("{"):
            return None
        low, comma, high = self.pattern[self.at : self.at + 12].partition("}")[0].partition(",")
        if not all(not n or (n.isascii() and n.isdigit()) for n in (low, high)) or not (low or high):
            raise self.error("'{' begins no repetition like {2} or {2,5} (\\{ for the sign)")
        least = int(low or 0)
        most = (int(high) if high else None) if comma else least
        if max(least, most or 0) > MAX_REPEAT:
            raise self.error(f"more than {MAX_REPEAT:,} repetitions")
        if most is not None and most < least:
            raise self.error(f"from {least} to {most} repetitions")
        self.at += len(low) + len(comma) + len(high)
        if not self.skip("}"):
            raise self.error("'}' is missing")
        return least, most

    def _class(self) -> Ranges:
        negative = self.skip("^")
        pairs: list[tuple[int, int]] = []
        first = True
        while first or not self.skip("]"):
            self._budget.check()
            first = False
            low = self._member()
            if not self._is_range():
                pairs += low
                continue
            self.at += 1
            high = self._member()
            if len(low) != 1 or len(high) != 1 or low[0][0] != low[0][1] or high[0][0] != high[0][1]:
                raise self.error("a range needs a character on both sides")
            if high[0][0] < low[0][0]:
                raise self.error("a range that ends before it begins")
            pairs.append((low[0][0], high[0][0]))
        ranges = ranges_of(pairs)
        return negated(ranges) if negative else ranges

    def _is_range(self) -> bool:
        return self.pattern.startswith("-", self.at) and not self.pattern.startswith("-]", self.at)

    def _member(self) -> Ranges:
        character = self._take("']'")
        return self._escape(inside=True) if character == "\\" else ((ord(character), ord(character)),)

    def _escape(self, inside: bool = False) -> Ranges:
        character = self._take("an escaped character")
        if character in CLASSES:
            return CLASSES[character]
        if inside and character == "b":
            return ((8, 8),)
        if character in HEX_DIGITS:
            return self._code_point(HEX_DIGITS[character])
        if character in string.ascii_letters + string.digits and character not in CONTROLS:
            raise self.error(f"\\{character} is not supported")
        if character == "0" and self.pattern[self.at : self.at + 1].isdigit():
            raise self.error("octal numbers are not supported; use \\x")
        code = ord(CONTROLS.get(character, character))
        return ((code, code),)

    def _code_point(self, length: int) -> Ranges:
        digits = self.pattern[self.at : self.at + length]
        if len(digits) < length or any(d not in string.hexdigits for d in digits) or int(digits, 16) > LAST:
            raise self.error(f"{length} hexadecimal digits of a character are expected")
        self.at += length
        return ((int(digits, 16), int(digits, 16)),)
