"""A random model that writes under a constraint, and a reader of schemas that knows nothing of grammars."""

import math
import random
import re
from typing import Any

from groundup.inference.constraint import Constraint
from groundup.tokenizer import Tokenizer

BYTES = Tokenizer.train_from_iterator(["a"], 257, special_tokens=["<|endoftext|>"])
END = {256}


def random_text(
    constraint: Constraint, tokenizer: Tokenizer, seed: int, liked: bytes = b'"]}', most: int = 3_000
) -> str:
    """Tokens drawn among those allowed, the ones with a liked byte more often, until an end token comes."""
    source, data = random.Random(seed), b""
    weights = [8.0 if set(tokenizer.vocab.get(t, b"")) & set(liked) else 0.3 for t in range(tokenizer.vocab_size)]
    for special in tokenizer.special_tokens.values():
        weights[special] = 8.0
    for count in range(most):
        allowed = constraint.mask().nonzero().flatten().tolist()
        assert allowed, f"nothing can follow {data!r}"
        hurry = 1 + count / 50
        token = source.choices(allowed, [weights[t] ** hurry + 1e-9 for t in allowed])[0]
        constraint.push(token)
        if token in tokenizer.special_tokens.values():
            return data.decode()
        data += tokenizer.vocab[token]
    raise AssertionError(f"no end after {most} tokens: {data[:200]!r}")


def fits(value: Any, schema: Any, root: Any) -> bool:
    """Whether a value is valid under the part of JSON Schema that the tests use, by its definitions."""
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        target = root
        for part in schema["$ref"].split("/")[1:]:
            target = target[int(part)] if isinstance(target, list) else target[part]
        return fits(value, target, root)
    checks = [
        "const" not in schema or same(value, schema["const"]),
        "enum" not in schema or any(same(value, option) for option in schema["enum"]),
        "anyOf" not in schema or any(fits(value, option, root) for option in schema["anyOf"]),
        all(fits(value, option, root) for option in schema.get("allOf", [])),
        "type" not in schema or any(is_a(value, t) for t in as_list(schema["type"])),
    ]
    if isinstance(value, str):
        checks += [schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf)]
        checks += ["pattern" not in schema or re.search(schema["pattern"], value) is not None]
        checks += [schema.get("format") != "email" or re.fullmatch(r"[^@\s]+@[^@\s]+\.[^@\s]+", value) is not None]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        checks += [schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)]
        checks += ["exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"]]
        checks += ["exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"]]
    if isinstance(value, list):
        prefix = schema.get("prefixItems", [])
        checks += [schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf)]
        checks += [fits(item, inner, root) for item, inner in zip(value, prefix, strict=False)]
        checks += [fits(item, schema.get("items", True), root) for item in value[len(prefix) :]]
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        checks += [name in value for name in schema.get("required", [])]
        checks += [fits(v, properties.get(k, schema.get("additionalProperties", True)), root) for k, v in value.items()]
    return all(checks)


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and a == b


def is_a(value: Any, kind: str) -> bool:
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    if kind in kinds:
        return isinstance(value, kinds[kind])
    return not isinstance(value, bool) and isinstance(value, int if kind == "integer" else (int, float))
