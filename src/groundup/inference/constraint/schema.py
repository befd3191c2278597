"""JSON Schema as a grammar.

    type, enum, const, anyOf, allOf of one, $ref into the schema (also to itself), true, {}
    object    properties (in their order), required, additionalProperties
    array     items, prefixItems, minItems, maxItems
    string    minLength, maxLength, pattern, format (date, time, date-time, uuid, ipv4, email)
    integer   minimum, maximum, exclusiveMinimum, exclusiveMaximum       number, boolean, null

What is written always fits the schema, and is one of the ways to fit it: properties come in the order of the schema,
and others only where `additionalProperties` is given, or no properties are. A keyword that would change what fits and
is not in this list is refused by name, as is a format that is not; titles, descriptions and the like are passed over.

JSON Schema 2020-12 (https://json-schema.org/draft/2020-12).
"""

from typing import Any

from groundup.config import nearest
from groundup.inference.constraint import json_texts as J
from groundup.inference.constraint.grammar import (
    EMPTY,
    MAX_DEPTH,
    MAX_REPEAT,
    START,
    Budget,
    Call,
    Grammar,
    Options,
    Part,
    Repeat,
    Series,
    any_of,
    none_of,
    optional,
    text,
)
from groundup.inference.constraint.regex import regex_part

ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
ANNOTATIONS |= {"$schema", "$id", "$comment", "$defs", "definitions", "$anchor"}
OF_TYPE = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": set(),
    "boolean": set(),
    "null": set(),
}
TYPES = tuple(OF_TYPE)
WHOLE = ("enum", "const", "anyOf", "allOf", "$ref")
"""Keywords that say all about a value by themselves."""
MAX_NAME = 256
MAX_BOUND = 10**18

_DATE = (
    r"\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_LABEL = "[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "email": rf"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@{_LABEL}(?:\.{_LABEL})+",
}
"""Each a part of what the format allows: dates without 29 February, times without leap seconds."""


def schema_grammar(schema: Any, budget: Budget) -> Grammar:
    """The rules of the JSON texts that fit. ValueError where the schema is wrong or not supported, with the place."""
    reader = _Reader(schema, budget)
    reader.grammar[START] = reader.value(schema, "#", 0)
    while reader.waiting:
        pointer = reader.waiting.pop()
        reader.grammar[f"ref {pointer}"] = reader.value(reader.find(pointer), pointer, 0)
    return reader.grammar


class _Reader:
    def __init__(self, root: Any, budget: Budget) -> None:
        self.grammar = J.basic_rules()
        self.waiting: list[str] = []
        self._root, self._budget = root, budget
        self._known: set[str] = set()
        self._rules = 0

    def value(self, schema: Any, at: str, depth: int) -> Part:
        """The texts that fit a schema, which is at this place of the whole."""
        self._budget.check()
        if schema is True or schema == {}:
            return J.VALUE
        if schema is False:
            return Options(())
        if not isinstance(schema, dict):
            raise _wrong(at, f"expected an object, true or false, got {type(schema).__name__}")
        if depth > MAX_DEPTH:
            raise _wrong(at, f"schemas in schemas, deeper than {MAX_DEPTH}; use $defs and $ref")
        whole = [keyword for keyword in WHOLE if keyword in schema]
        if whole:
            return self._whole(whole[0], schema, at, depth)
        types = _types(schema, at)
        known = {"type"}.union(*(OF_TYPE[t] for t in types))
        for keyword in schema.keys() - ANNOTATIONS - known:
            raise _wrong(at, f"keyword {keyword!r} is not supported for {' or '.join(types)}{nearest(keyword, known)}")
        options = tuple(self._of_type(t, schema, at, depth) for t in types)
        return options[0] if len(options) == 1 else Options(options)

    def _whole(self, keyword: str, schema: dict[str, Any], at: str, depth: int) -> Part:
        given, at = schema[keyword], f"{at}/{keyword}"
        beside = schema.keys() - ANNOTATIONS - {keyword} - ({"type"} if keyword in ("enum", "const") else set())
        if beside:
            raise _wrong(at, f"{', '.join(sorted(beside))} beside {keyword} is not supported")
        if keyword == "$ref":
            return self._reference(given, at)
        if keyword == "const":
            return _literal(given, at)
        if not isinstance(given, list) or not given:
            raise _wrong(at, "expected a list that is not empty")
        if keyword == "enum":
            spelled = [J.spelled(value, at) for value in given if _has_type(value, schema.get("type"))]
            return any_of(spelled, self._rule_name("enum"), self.grammar) if spelled else Options(())
        if keyword == "allOf" and len(given) > 1:
            raise _wrong(at, "several schemas at once are not supported; write them as one")
        return Options(tuple(self.value(option, f"{at}/{n}", depth + 1) for n, option in enumerate(given)))

    def _reference(self, pointer: Any, at: str) -> Part:
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise _wrong(at, f"{pointer!r:.80} is not supported; only places in this schema, such as '#/$defs/item'")
        if pointer not in self._known:
            self.find(pointer)
            self._known.add(pointer)
            self.waiting.append(pointer)
        return Call(f"ref {pointer}")

    def find(self, pointer: str) -> Any:
        found = self._root
        for part in pointer.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and name in found:
                found = found[name]
            elif isinstance(found, list) and name.isdecimal() and int(name[:9]) < len(found):
                found = found[int(name[:9])]
            else:
                raise _wrong(pointer, "there is no such place in the schema")
        return found

    def _of_type(self, kind: str, schema: dict[str, Any], at: str, depth: int) -> Part:
        match kind:
            case "object":
                return self._object(schema, at, depth)
            case "array":
                return self._array(schema, at, depth)
            case "string":
                return self._string(schema, at)
            case "integer":
                return _integer(schema, at)
            case "number":
                return J.number()
            case "boolean":
                return Options((text("true"), text("false")))
        return text("null")

    def _object(self, schema: dict[str, Any], at: str, depth: int) -> Part:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict):
            raise _wrong(f"{at}/properties", "expected an object")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise _wrong(f"{at}/required", "expected a list of names")
        missing = next((name for name in required if name not in properties), None)
        if missing is not None:
            raise _wrong(f"{at}/required", f"{missing!r:.80} is not in properties, which says what it may be")
        members = [
            (self._member(name, inner, f"{at}/properties/{name}", depth), name in required)
            for name, inner in properties.items()
        ]
        return J.object_of(self._members(members, self._additional(schema, at, depth)))

    def _member(self, name: str, schema: Any, at: str, depth: int) -> Part:
        if len(name) > MAX_NAME:
            raise _wrong(at[:200], f"a name of {len(name):,} characters; at most {MAX_NAME}")
        return Series((_literal(name, at), J.COLON, self.value(schema, at, depth + 1)))

    def _additional(self, schema: dict[str, Any], at: str, depth: int) -> Part | None:
        """A member under a name that `properties` has not, where such ones may be."""
        names = list(schema.get("properties", {}))
        inner = schema.get("additionalProperties", not names)
        if inner is False:
            return None
        value = self.value(inner, f"{at}/additionalProperties", depth + 1)
        # Spelled without escapes, so that a declared name cannot come back in another spelling.
        name = none_of(names, J.PLAIN, self._rule_name("name"), self.grammar) if names else None
        return Series((J.quoted(name) if name else J.STRING, J.COLON, value))

    def _members(self, members: list[tuple[Part, bool]], additional: Part | None) -> Part:
        """The members in order, commas between them: before the first one there is none.

        `first` is what can come while there is no member yet: any of the leading optional ones or the first required
        one, each followed by `rest`, the members after it.
        """
        rest: Part = EMPTY if additional is None else Repeat(Series((J.COMMA, additional)), 0, None)
        first: Part = EMPTY if additional is None else optional(J.listed(additional, 1, None))
        for member, needed in reversed(members):
            rest = self._rule(rest)
            begun = Series((member, rest))
            first = begun if needed else Options((begun, self._rule(first)))
            follows = Series((J.COMMA, member))
            rest = Series((follows if needed else optional(follows), rest))
        return first

    def _array(self, schema: dict[str, Any], at: str, depth: int) -> Part:
        prefix = schema.get("prefixItems", [])
        if not isinstance(prefix, list):
            raise _wrong(f"{at}/prefixItems", "expected a list of schemas")
        low = _count(schema, "minItems", at) or 0
        high = _count(schema, "maxItems", at)
        places = [self.value(item, f"{at}/prefixItems/{n}", depth + 1) for n, item in enumerate(prefix)]
        item = self.value(schema.get("items", not prefix), f"{at}/items", depth + 1)
        if high is not None and high < low:
            return Options(())
        if not places:
            return J.array_of(J.listed(self._rule(item), low, high))
        places = places if high is None else places[:high]
        others = None if high is None else high - len(places)
        rest: Part = Repeat(Series((J.COMMA, self._rule(item))), max(low - len(places), 0), others)
        for number, place in reversed(list(enumerate(places))):
            comma = (J.COMMA,) if number else ()
            some = Series((*comma, place, rest))
            rest = some if number < low else optional(some)
        return J.array_of(rest)

    def _string(self, schema: dict[str, Any], at: str) -> Part:
        low, high = _count(schema, "minLength", at) or 0, _count(schema, "maxLength", at)
        if "pattern" in schema or "format" in schema:
            if len({"pattern", "format", "minLength", "maxLength"} & schema.keys()) > 1:
                raise _wrong(at, "pattern, format and lengths are not supported together; write one pattern")
            return J.quoted(J.in_string(self._pattern(schema, at)))
        if high is not None and high < low:
            return Options(())
        return J.STRING if not low and high is None else J.quoted(Repeat(J.CHARACTER, low, high))

    def _pattern(self, schema: dict[str, Any], at: str) -> Part:
        if "format" in schema:
            name = schema["format"]
            if name not in FORMATS:
                raise _wrong(f"{at}/format", f"{name!r:.80} is not supported{nearest(str(name)[:80], FORMATS)}")
            return regex_part(FORMATS[name], self._budget)
        pattern = schema["pattern"]
        if not isinstance(pattern, str):
            raise _wrong(f"{at}/pattern", "expected a regular expression")
        return regex_part(pattern, self._budget, search=True)

    def _rule(self, part: Part) -> Part:
        """The part under a name, so that it is built once however often it is used."""
        if isinstance(part, Call):
            return part
        name = self._rule_name("part")
        self.grammar[name] = part
        return Call(name)

    def _rule_name(self, kind: str) -> str:
        self._rules += 1
        return f"{kind} {self._rules}"


def _types(schema: dict[str, Any], at: str) -> list[str]:
    """The types that a value may have; where it is not said, those that the other keywords speak of."""
    given = schema.get("type")
    if given is None:
        spoken = [kind for kind in TYPES if OF_TYPE[kind] & schema.keys()]
        return spoken or [kind for kind in TYPES if kind != "integer"]
    types = given if isinstance(given, list) else [given]
    wrong = next((kind for kind in types if kind not in TYPES), None)
    if wrong is not None or not types:
        raise _wrong(f"{at}/type", f"{wrong!r:.80} is no type; expected one of {', '.join(TYPES)}")
    return types


def _has_type(value: Any, kinds: str | list[str] | None) -> bool:
    """Whether a value of an enum is of one of the types beside it."""
    python = {"object": dict, "array": list, "string": str, "number": (int, float), "boolean": bool}
    for kind in [kinds] if isinstance(kinds, str) else kinds or [None]:
        if kind is None or (kind == "null" and value is None):
            return True
        if kind == "integer" and isinstance(value, int) and not isinstance(value, bool):
            return True
        if kind in python and isinstance(value, python[kind]) and (kind == "boolean" or not isinstance(value, bool)):
            return True
    return False


def _integer(schema: dict[str, Any], at: str) -> Part:
    lows = [_bound(schema, "minimum", at, 0), _bound(schema, "exclusiveMinimum", at, 1)]
    highs = [_bound(schema, "maximum", at, 0), _bound(schema, "exclusiveMaximum", at, -1)]
    low = max((bound for bound in lows if bound is not None), default=None)
    high = min((bound for bound in highs if bound is not None), default=None)
    if low is None and high is None:
        return J.INTEGER
    return J.integer_between(low, high)


def _bound(schema: dict[str, Any], keyword: str, at: str, shift: int) -> int | None:
    value = schema.get(keyword)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > MAX_BOUND:
        raise _wrong(f"{at}/{keyword}", "expected a whole number of at most 18 digits")
    return value + shift


def _count(schema: dict[str, Any], keyword: str, at: str) -> int | None:
    value = schema.get(keyword)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_REPEAT:
        raise _wrong(f"{at}/{keyword}", f"expected a whole number from 0 to {MAX_REPEAT:,}")
    return value


def _literal(value: Any, at: str) -> Part:
    return text(J.spelled(value, at))


def _wrong(at: str, what: str) -> ValueError:
    return ValueError(f"json_schema: at {at[:200]}: {what}")
