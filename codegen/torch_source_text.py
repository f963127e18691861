"""The words of generated torch code: types, operators, reductions, and helper functions.

What the scalar functions and monoids of the IR are called in torch; a program with anything that
is not here has no torch code.
"""

from __future__ import annotations

from collections.abc import Mapping

from autosched.ir.monoid import MONOIDS

# How values are stored, and in what they are computed.
STORED: Mapping[str, str] = {
    "float8_e4m3": "torch.float8_e4m3fn",
    **{name: f"torch.{name}" for name in (
        "float64", "float32", "float16", "bfloat16", "float8_e5m2", "int64", "int32", "int16",
        "int8", "uint32", "uint16", "uint8", "bool",
    )},
}  # fmt: skip
KINDS: Mapping[str, str] = {
    **STORED,
    **dict.fromkeys(("float16", "bfloat16", "float8_e4m3", "float8_e5m2"), "torch.float32"),
    **dict.fromkeys(("uint32", "uint16"), "torch.int64"),  # torch has next to nothing in them
    "results": "", "list": "",
}  # fmt: skip
MASKS: Mapping[str, str] = {"uint32": "0xFFFFFFFF", "uint16": "0xFFFF"}
SIGNED: Mapping[str, str] = {"uint32": "torch.int32", "uint16": "torch.int16"}
SATURATED: Mapping[str, str] = {  # casts to fp8 do, casts of torch do not
    "float8_e4m3": "{}.clamp(-448.0, 448.0)", "float8_e5m2": "{}.clamp(-57344.0, 57344.0)",
}  # fmt: skip

SYMBOLS: Mapping[str, str] = {
    "add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "div": "{} / {}", "lt": "{} < {}",
    "le": "{} <= {}", "gt": "{} > {}", "ge": "{} >= {}", "eq": "{} == {}", "ne": "{} != {}",
    "floordiv": "{} // {}", "mod": "{} % {}", "bitand": "{} & {}", "bitor": "{} | {}",
    "bitxor": "{} ^ {}", "shl": "{} << {}", "shr": "{} >> {}",
}  # fmt: skip
_CALLS = {
    "max": "maximum", "min": "minimum", "xor": "logical_xor", "and": "logical_and",
    "or": "logical_or", "not": "logical_not", "bitnot": "bitwise_not", "neg": "neg",
    **{name: name for name in (
        "fmod", "pow", "abs", "floor", "ceil", "round", "exp", "exp2", "log", "log2", "log1p",
        "sqrt", "rsqrt", "erf", "tanh", "sin", "cos", "tan", "asin", "acos", "atan", "sinh",
        "cosh", "asinh", "acosh", "atanh", "isnan", "isinf", "where",
    )},
}  # fmt: skip
_ARITY = {"where": 3, "max": 2, "min": 2, "and": 2, "or": 2, "xor": 2, "fmod": 2, "pow": 2}
OPERATORS: Mapping[str, str] = {
    **SYMBOLS,
    **{name: f"torch.{call}({', '.join(['{}'] * _ARITY.get(name, 1))})"
       for name, call in _CALLS.items()},
    "truncdiv": 'torch.div({}, {}, rounding_mode="trunc")',
    "popcount": "_popcount({})", "sign": "torch.where({0} == {0}, torch.sign({0}), {0})",
}  # fmt: skip
# With a number as the second operand.
CLAMPS: Mapping[str, str] = {"max": "{}.clamp(min={})", "min": "{}.clamp(max={})"}
# Forms that take Python numbers for some of their operands.
NUMBERS = frozenset((
    *SYMBOLS.values(), *CLAMPS.values(), *(OPERATORS[n] for n in ("where", "pow"))
))  # fmt: skip

MONOID_CALLS: Mapping[str, str] = {
    "sum": "{x}.sum(dim={dims})", "any": "{x}.any(dim={dims})", "all": "{x}.all(dim={dims})",
    "max": "_extreme(torch.amax, {x}, {dims}, {low})",
    "min": "_extreme(torch.amin, {x}, {dims}, {low})",
    "prod": "{x}.flatten(-len({dims})).prod(-1)",
}  # fmt: skip
SCAN_CALLS: Mapping[str, str] = {
    "sum": "torch.cumsum", "prod": "torch.cumprod", "max": "_highest", "min": "_lowest",
}  # fmt: skip

HELPERS: Mapping[str, str] = {
    "_popcount": '''\
def _popcount(x):
    """Set bits, of negative numbers in two's complement."""
    width = 8 * x.element_size()
    return sum((x >> n) & 1 for n in range(width))''',
    "_extreme": '''\
def _extreme(best, x, dims, low):
    """`best` over dimensions, `low` where they have no elements."""
    if all(x.shape[d] for d in dims):
        return best(x, dims)
    shape = [n for d, n in enumerate(x.shape) if d not in dims]
    return torch.full(shape, low, dtype=x.dtype, device=x.device)''',
    "_scan": '''\
def _highest(x, dim):
    return torch.cummax(x, dim).values


def _lowest(x, dim):
    return torch.cummin(x, dim).values


def _scan(running, x, exclusive, reverse, low):
    """The running result along the last dimension; exclusive: without its own element."""
    x = x.flip(-1) if reverse else x
    out = running(x, -1) if x.shape[-1] else x.clone()
    if exclusive:
        head = torch.full_like(out[..., :1], low)
        out = torch.cat([head, out[..., :-1]], -1)
    return out.flip(-1) if reverse else out''',
    "_tree": '''\
def _tree(combine, parts, lows):
    """Neighbours along the last dimension combined in pairs until one is left."""
    parts = tuple(parts)
    if not parts[0].shape[-1]:
        parts = tuple(torch.full((*p.shape[:-1], 1), low, dtype=p.dtype, device=p.device)
                      for p, low in zip(parts, lows))
    while (n := parts[0].shape[-1]) > 1:
        even = n - n % 2
        made = combine(tuple(p[..., :even:2] for p in parts), tuple(p[..., 1::2] for p in parts))
        parts = tuple(torch.cat([m, p[..., even:]], -1) for m, p in zip(made, parts))
    return [p[..., 0] for p in parts]''',
}  # fmt: skip


def combine_text(monoid: str) -> str:
    """The function that combines two elements of a monoid with several components."""
    spec = MONOIDS[monoid]
    lines: list[str] = []

    def apply(name: str, *operands: str) -> str:
        lines.append(f"    t{len(lines)} = {OPERATORS[name].format(*operands)}")
        return f"t{len(lines) - 1}"

    sides = [tuple(f"{side}[{n}]" for n in range(spec.arity)) for side in "ab"]
    results = spec.combine(apply, *sides)
    return "\n".join([
        f"def _{monoid}(a, b):", *lines, f"    return {', '.join(results)}",
    ])  # fmt: skip
