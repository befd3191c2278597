import datetime
import ipaddress
import json
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.inference.constraint import compile_constraint
from groundup.inference.constraint.automaton import ACCEPTED
from groundup.inference.constraint.grammar import START, Budget
from groundup.inference.constraint.json_texts import basic_rules, integer_between
from groundup.inference.constraint.network import Network
from groundup.tokenizer import Tokenizer
from tests.inference.constrained import BYTES, END, fits, random_text

TREE = {
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}},
            },
            "required": ["value"],
        }
    },
    "$ref": "#/$defs/tree",
}
PERSON = {
    "title": "Person",
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mail": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"enum": ["a", 'b"c', "é"]}, "maxItems": 3},
    },
    "required": ["age", "tags"],
    "additionalProperties": False,
}
SCHEMAS = {
    "any": {},
    "true": True,
    "object": {"type": "object"},
    "person": PERSON,
    "tree": TREE,
    "itself": {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["next"],
    },
    "first optional": {"properties": {"a": {"const": 1}, "b": {"const": [True, None]}, "c": {"type": "null"}}},
    "others": {"properties": {"id": {"type": "integer"}}, "additionalProperties": {"type": "boolean"}},
    "map": {"type": "object", "additionalProperties": {"type": "number"}},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}], "items": False},
    "prefix": {
        "type": "array",
        "prefixItems": [{"type": "integer"}],
        "items": {"type": "null"},
        "minItems": 2,
        "maxItems": 4,
    },
    "counted": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    "types": {"type": ["string", "null", "boolean"]},
    "pattern": {"type": "string", "pattern": '^["\\\\\\n]{1,3}|b$'},
    "search": {"type": "string", "pattern": "x\\d"},
    "date": {"type": "string", "format": "date-time"},
    "uuid": {"type": "string", "format": "uuid"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "bounds": {"type": "integer", "exclusiveMinimum": -13, "maximum": 207},
    "enum": {"enum": [1, "1", None, {"a": [1.5, "ü"]}, True], "type": ["string", "object", "null", "integer"]},
    "nested": {"allOf": [{"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#/allOf/0"}}]}]},
}


def machine(schema):
    return compile_constraint("json_schema", schema, BYTES, END)._automaton


def accepts(automaton, text):
    return ACCEPTED in automaton.advance(automaton.start, text.encode())


@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_a_random_model_writes_fits(name):
    schema = SCHEMAS[name]
    liked = b'"xb1' if name in ("pattern", "search") else b'"]}'
    for seed in range(12):
        text = random_text(compile_constraint("json_schema", schema, BYTES, END), BYTES, seed, liked)
        assert fits(json.loads(text), schema, schema), (schema, text)


def test_any_json_is_what_json_reads():
    automaton = machine({})
    for value in (None, [], {}, [[], {}], {"a": [1, -2.5e-3, 'x\n\\" é😀', True]}, "", 0, -0.0, 1e300, {"": {"": ""}}):
        for indent in (None, 0, 1, 4):
            assert accepts(automaton, json.dumps(value, ensure_ascii=False, indent=indent)), (value, indent)
        assert accepts(automaton, json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    for text in (
        "",
        "01",
        "1.",
        ".5",
        "+1",
        "nul",
        "[1,]",
        "{,}",
        '{"a"}',
        "{1:2}",
        '"\n"',
        '"\\x"',
        "[1 2]",
        "1e",
        "'a'",
    ):
        assert not accepts(automaton, text), text


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100)
@given(VALUES)
def test_every_value_can_be_written(value):
    assert accepts(machine({}), json.dumps(value, ensure_ascii=False))


@settings(max_examples=100)
@given(st.text('{}[]",:0123.eE-+ntruefalse\\u ', max_size=8))
def test_no_text_that_json_refuses_is_written(text):
    if accepts(machine({}), text):
        json.loads(text)


ACCEPTED_AND_NOT = {
    "person": (
        [
            '{"age":3,"tags":[]}',
            '{"name": "Jo", "age": 150, "tags": ["a", "b\\"c","é"]}',
            '{\n  "age": 1,\n  "tags": []\n}',
        ],
        [
            '{"tags":[],"age":3}',
            '{"age":151,"tags":[]}',
            '{"name":"","age":1,"tags":[]}',
            '{"name":"abcdef","age":1,"tags":[]}',
            '{"age":1}',
            '{"age":1,"tags":["c"]}',
            '{"age":1,"tags":[],"x":1}',
            '{"age":1,"tags":["a","a","a","a"]}',
            "{}",
        ],
    ),
    "tree": (
        ['{"value":1}', '{"value":-1,"children":[{"value":2,"children":[]},{"value":3}]}'],
        ['{"children":[]}', "[]"],
    ),
    "itself": (['{"next":null}', '{"next":{"next":null}}'], ["{}", '{"next":1}', '{"next":{"next":null}']),
    "first optional": (
        ["{}", '{"a":1}', '{"a":1,"b":[true,null]}', '{"a":1,"c":null}', '{"b":[true,null],"c":null}', '{"c":null}'],
        ['{,"a":1}', '{"a":1,}', '{"a":2}', '{"c":null,"a":1}', '{"a":1"c":null}', '{"a":1,"a":1}'],
    ),
    "others": (
        ["{}", '{"id":1}', '{"i":true}', '{"id":1,"idd":true,"x":false}', '{"":true}'],
        ['{"id":true}', '{"id":1,"id":true}'],
    ),
    "tuple": (["[]", "[1]", "[1,null]", "[ 1, null ]"], ["[null]", "[1,null,null]", "[,]", "[1,]"]),
    "prefix": (["[1,null]", "[1,null,null,null]"], ["[]", "[1]", "[1,null,null,null,null]", "[null,null]"]),
    "counted": (["[true,false]", "[true,true,true]"], ["[]", "[true]", "[true,true,true,true]"]),
    "pattern": (['"\\""', '"\\\\\\n"', '"\\"x"', '"ab"', '"b"'], ['"x"', '"a\\""', '"ba"']),
    "search": (['"x1"', '"aax0é"', '"\\nx1"'], ['"x"', '"1x"']),
    "date": (
        ['"2024-02-28T23:59:59Z"', '"1999-12-31T00:00:00.5+02:00"'],
        ['"2024-02-30T00:00:00Z"', '"2024-13-01T00:00:00Z"'],
    ),
    "bounds": (["-12", "0", "7", "99", "207"], ["-13", "208", "-0", "007", "1.0", "1000"]),
    "enum": (['"1"', "null", '{"a":[1.5,"ü"]}', "1"], ["true", "2", '"2"']),
}


@pytest.mark.parametrize("name", ACCEPTED_AND_NOT)
def test_accepted_texts_by_hand(name):
    automaton = machine(SCHEMAS[name])
    good, bad = ACCEPTED_AND_NOT[name]
    for text in good:
        assert fits(json.loads(text), SCHEMAS[name], SCHEMAS[name]) and accepts(automaton, text), text
    for text in bad:
        assert not accepts(automaton, text), text


@pytest.mark.parametrize(
    "bounds", [(0, 0), (-3, 3), (None, -7), (95, None), (None, 12), (-120, -95), (8, 1101), (5, 4)]
)
def test_every_whole_number_between_bounds_and_no_other(bounds):
    low, high = bounds
    grammar = {**basic_rules(), START: integer_between(low, high)}
    if low is not None and high is not None and low > high:
        live = Network(grammar, Budget(30)).live_nodes(range(256))
        assert Network(grammar, Budget(30)).starts[START] not in live
        return
    schema = (
        {"type": "integer"} | ({} if low is None else {"minimum": low}) | ({} if high is None else {"maximum": high})
    )
    automaton = machine(schema)
    for n in range(-1300, 1300):
        assert accepts(automaton, str(n)) == ((low is None or n >= low) and (high is None or n <= high)), n


def test_formats_are_what_the_standard_library_reads():
    readers = {"date": datetime.date.fromisoformat, "date-time": datetime.datetime.fromisoformat, "uuid": uuid.UUID}
    readers |= {"ipv4": ipaddress.IPv4Address, "time": datetime.time.fromisoformat}
    for name, read in readers.items():
        for seed in range(20):
            constraint = compile_constraint("json_schema", {"type": "string", "format": name}, BYTES, END)
            read(json.loads(random_text(constraint, BYTES, seed)))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strin"}, "'strin' is no type"),
        ({"type": "object", "patternProperties": {}}, "'patternProperties' is not supported for object"),
        ({"type": "string", "maxlength": 3}, "did you mean 'maxLength'"),
        ({"oneOf": [{}]}, "'oneOf' is not supported"),
        ({"type": "number", "minimum": 0}, "'minimum' is not supported for number"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"type": "string", "format": "emial"}, "did you mean 'email'"),
        ({"type": "string", "pattern": "(?=a)"}, "look-around"),
        ({"type": "string", "pattern": "a", "maxLength": 3}, "not supported together"),
        ({"type": "object", "required": ["a"]}, "'a' is not in properties"),
        ({"type": "object", "properties": []}, "#/properties: expected an object"),
        ({"type": "integer", "minimum": 1.5}, "#/minimum: expected a whole number"),
        ({"type": "string", "maxLength": 10**9}, "from 0 to 1,000"),
        ({"type": "string", "minLength": True}, "from 0 to 1,000"),
        ({"$ref": "http://x/y"}, "only places in this schema"),
        ({"$ref": "#/$defs/x"}, "no such place"),
        ({"$ref": "#"}, "refers to itself before"),
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "refers to itself before"),
        ({"anyOf": []}, "list that is not empty"),
        ({"allOf": [{}, {}]}, "write them as one"),
        ({"const": 1, "minimum": 3}, "minimum beside const"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "no text can satisfy it"),
        ({"enum": [1], "type": "string"}, "no text can satisfy it"),
        ({"type": "array", "minItems": 2, "maxItems": 1}, "no text can satisfy it"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "no text can satisfy it"),
        (False, "no text can satisfy it"),
        ([], "expected an object, true or false"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON|expected"),
        ('{"const": NaN}', "at #/const"),
        ({"const": "\ud800"}, "surrogates"),
        ({"type": "object", "properties": {"x" * 300: {}}}, "a name of 300 characters"),
        ("x" * (1 << 20), "1,048,576 characters"),
    ],
)  # fmt: skip
def test_what_is_refused_and_why(schema, message):
    with pytest.raises(ValueError, match=message):
        compile_constraint("json_schema", schema, BYTES, END)


def test_deep_and_wide_schemas_are_refused_in_time():
    deep = {"type": "null"}
    for _ in range(200):
        deep = {"type": "array", "items": deep}
    with pytest.raises(ValueError, match="deeper than 32"):
        compile_constraint("json_schema", deep, BYTES, END)
    wide = {"type": "object", "properties": {f"p{i}": {"type": "string", "maxLength": 1000} for i in range(1000)}}
    with pytest.raises(ValueError, match="too large|more than 1 s|too ambiguous"):
        compile_constraint("json_schema", wide, BYTES, END)


def test_reused_definitions_do_not_multiply():
    """Each level uses the next one twice: 2^30 copies, were they copied."""
    defs = {
        f"d{i}": {"type": "array", "items": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"type": "null"}]}}
        for i in range(30)
    }
    defs |= {
        f"d{i}": {"type": "object", "properties": {n: {"$ref": f"#/$defs/d{i + 1}"} for n in "ab"}} for i in range(30)
    }
    defs["d30"] = {"type": "null"}
    text = random_text(compile_constraint("json_schema", {"$defs": defs, "$ref": "#/$defs/d0"}, BYTES, END), BYTES, 0)
    json.loads(text)


def test_a_vocabulary_of_merges_writes_the_same_language():
    merged = Tokenizer.train_from_iterator([json.dumps(PERSON)] * 3, 330, special_tokens=["<|endoftext|>"])
    for seed in range(12):
        constraint = compile_constraint("json_schema", PERSON, merged, {merged.end_of_text})
        assert fits(json.loads(random_text(constraint, merged, seed)), PERSON, PERSON)
