"""Words of the text form: names, types, literals and the operators of inline expressions."""

from __future__ import annotations

import json
import math
import re

from autosched.ir.node import IRError, Type
from autosched.ir.scalar import DTYPES, FLOATS

SHORT = {
    "float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16",
    "float8_e4m3": "e4m3", "float8_e5m2": "e5m2",
    "int64": "i64", "int32": "i32", "int16": "i16", "int8": "i8",
    "uint64": "u64", "uint32": "u32", "uint16": "u16", "uint8": "u8", "bool": "bool",
}  # fmt: skip
LONG = {short: long for long, short in SHORT.items()}
assert set(SHORT) == set(DTYPES)

# Binary operators, the loosest first; comparisons do not chain.
LEVELS: tuple[dict[str, str], ...] = (
    {"|": "or"},
    {"&": "and"},
    {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"},
    {"+": "add", "-": "sub"},
    {"*": "mul", "/": "div", "//": "floordiv", "%": "mod"},
)
COMPARISONS = 2
INFIX = {fn: (sign, n) for n, level in enumerate(LEVELS) for sign, fn in level.items()}
ATOM = len(LEVELS)

# Words that begin a form or a line, or stand between operands: as names they are quoted.
RESERVED = frozenset(
    (
        "true", "false", "inf", "nan", "iota", "node", "input", "buffer", "carry", "take",
        "reaxis", "reduce", "scan", "fold", "get", "load", "place", "slice", "dot", "trisolve",
        "at", "from", "as", "by", "mask", "fill", "exclusive", "reverse", "yield", "stack",
        "with",
    )
)  # fmt: skip
_BARE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")


def name_text(name: str) -> str:
    """A name as it stands in text: bare where it is a word, else a JSON string."""
    bare = _BARE.match(name) and name not in RESERVED and not name.endswith(".")
    return name if bare else json.dumps(name)


def literal_text(value: float | bool, dtype: str) -> str:
    """A constant; int32, float32 and bool need no suffix."""
    if dtype == "bool":
        return "true" if value else "false"
    word = repr(value)
    if dtype in FLOATS and not math.isfinite(value):
        word = "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return word if dtype in ("int32", "float32") else f"{word}:{SHORT[dtype]}"


def long_dtype(short: str) -> str:
    if short not in LONG:
        raise IRError(f"unknown type {short!r}")
    return LONG[short]


def type_text(kind: Type) -> str:
    """A type with its axes, extents where they are numbers."""
    axes = ", ".join(name_text(a) + (f"={e}" if isinstance(e, int) else "") for a, e in kind.axes)
    return f"{SHORT[kind.dtype]}[{axes}]"
