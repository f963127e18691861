"""Scalar functions of the IR as Triton expressions: one row a function, with the IR's meaning.

Operands come aligned. Narrow floats are widened to float32 by all that computes, and stay so until
a cast, a dot or a store asks for the narrow type: the IR rounds there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from autosched.codegen.triton_text import (
    ADD,
    ATOM,
    BITAND,
    BITOR,
    BITXOR,
    COMPARE,
    MUL,
    NARROW,
    SHIFT,
    TYPES,
    UNARY,
    Unsupported,
    Val,
)
from autosched.ir.linear import range_of
from autosched.ir.node import Node
from autosched.ir.scalar import FLOATS, ITEMSIZE, SCALARS, split_name

Use = Callable[[str], str]  # makes a helper part of the module, returns its name
Row = Callable[[Node, Sequence[Val], Use], tuple[str, int]]
GREATEST = {"float8_e4m3": 448.0, "float8_e5m2": 57344.0}
MOVES = frozenset(("where",))  # functions that compute nothing: operands stay narrow


def apply(node: Node, operands: Sequence[Val], dims: tuple[str, ...], use: Use) -> Val:
    """The `map` node of operands that have the dimensions `dims`, or are scalars."""
    fn, target = split_name(node.attr[0])
    if fn == "cast":
        return cast_to(operands[0], target, use)
    if SCALARS[fn].result == "bits":
        return bits_of(cast_to(tensor(operands[0]), node.src[0].dtype, use), target)
    held = [x if fn in MOVES and _same(operands) else widened(x) for x in operands]
    if fn in _CALLS_WITH_TENSORS and all(x.literal for x in held[-2:]):
        held[-1] = held[-1] if held[-1].dtype in _OF_LITERALS else tensor(held[-1])
    text, rank = SCALAR_ROWS[fn](node, held, use)
    dtype = held[-1].dtype if node.dtype in FLOATS else node.dtype
    return Val(text, dims, dtype, rank, text.isdigit())


_CALLS_WITH_TENSORS = frozenset(("where", "max", "min"))
_OF_LITERALS = ("float32", "int32", "bool")  # what Triton takes a number for


def _same(operands: Sequence[Val]) -> bool:
    """Whether the branches of a `where` are held alike; literals fit any."""
    return len({x.dtype for x in operands[1:] if not x.literal}) < 2


def widened(x: Val) -> Val:
    """A narrow float in float32."""
    if x.dtype not in NARROW:
        return x
    if x.literal:
        return Val(x.text, x.dims, "float32", x.rank, True)
    return Val(f"{x.inside(ATOM)}.to(tl.float32)", x.dims, "float32")


def tensor(x: Val) -> Val:
    """A literal as a scalar of its type."""
    return Val(f"tl.full((), {x.text}, {TYPES[x.dtype]})", (), x.dtype) if x.literal else x


def cast_to(x: Val, target: str, use: Use) -> Val:
    """The value in the type `target`, held so."""
    if x.dtype == target:
        return x
    if target == "bool":
        wide = widened(x)
        return Val(f"{wide.inside(BITOR)} != 0", x.dims, "bool", COMPARE)
    if x.literal:
        x = tensor(x)
    if target in GREATEST:
        x, limit = widened(x), GREATEST[target]
        low = f"{use('nan_max')}({x.text}, -{limit})"
        x = Val(f"{use('nan_min')}({low}, {limit})", x.dims, x.dtype)
    if x.dtype in NARROW and target != "float32":
        x = widened(x)
    if x.dtype == "float64" and target in NARROW - {"float16"}:
        x = Val(f"{x.inside(ATOM)}.to(tl.float32)", x.dims, "float32")
    return Val(f"{x.inside(ATOM)}.to({TYPES[target]})", x.dims, target)


def bits_of(x: Val, target: str) -> Val:
    """The bits of a value, which is held in its own type, read as another of its width."""
    if x.dtype == target:
        return x
    return Val(f"{x.inside(ATOM)}.to({TYPES[target]}, bitcast=True)", x.dims, target)


# ---- rows -------------------------------------------------------------------------------------


def _infix(sign: str, rank: int) -> Row:
    def row(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
        return f"{x[0].inside(rank)} {sign} {x[1].inside(rank + 1)}", rank

    return row


def _sum(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
    """Of integers, with what is the same everywhere in front: where a tile starts."""
    a, b = x
    if a.dtype in FLOATS:
        return _infix("+", ADD)(node, x, use)
    if a.dims and not b.dims and not b.literal:
        a, b = b, a
    if "0" in (a.text, b.text):
        rest = b if a.text == "0" else a
        return rest.text, rest.rank
    return _infix("+", ADD)(node, (a, b), use)


def _product(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
    """Of integers, with the coordinate of a loop of one step, which is 0, multiplied out."""
    a, b = x
    if a.dtype not in FLOATS and not a.dims and not b.dims:
        if "0" in (a.text, b.text):
            return "0", ATOM
        if "1" in (a.text, b.text):
            rest = b if a.text == "1" else a
            return rest.text, rest.rank
    return _infix("*", MUL)(node, x, use)


def _compare(sign: str) -> Row:
    def row(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
        return f"{x[0].inside(BITOR)} {sign} {x[1].inside(BITOR)}", COMPARE

    return row


def _call(name: str) -> Row:
    """A function of `tl`."""

    def row(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
        return f"tl.{name}({', '.join(exact(v).text for v in x)})", ATOM

    return row


def _helper(name: str) -> Row:
    def row(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
        return f"{use(name)}({', '.join(tensor(v).text for v in x)})", ATOM

    return row


def exact(x: Val) -> Val:
    """A float64 literal as an argument of a function, which would take it as a float32."""
    return tensor(x) if x.dtype == "float64" else x


def _of_kind(floats: Row, ints: Row, bools: Row | None = None) -> Row:
    def row(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
        kind = node.src[-1].dtype
        if kind == "bool" and bools is not None:
            return bools(node, x, use)
        return (floats if kind in FLOATS else ints)(node, x, use)

    return row


def _extreme(name: str) -> Row:
    def row(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
        return f"{use(name)}({', '.join(exact(v).text for v in x)})", ATOM

    return row


def _steady(node: Node) -> bool:
    """Whether C's division is the one that rounds down: no operand is negative."""
    if node.dtype.startswith("uint"):
        return True
    lows = [range_of(s)[0] for s in node.src]
    return all(low is not None and low >= 0 for low in lows)


def _down(sign: str, name: str) -> Row:
    plain, careful = _infix(sign, MUL), _helper(name)
    return lambda node, x, use: (plain if _steady(node) else careful)(node, x, use)


def _unary(sign: str) -> Row:
    return lambda node, x, use: (f"{sign}{x[0].inside(UNARY)}", UNARY)


def _same_value(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
    return x[0].text, x[0].rank


def _sqrt(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
    name = "sqrt" if x[0].dtype == "float64" else "sqrt_rn"
    return f"tl.{name}({x[0].text})", ATOM


def _rsqrt(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
    """Correctly rounded steps: `tl.rsqrt` is an approximation."""
    return f"1.0 / {_sqrt(node, x, use)[0]}", MUL


def _bitnot(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
    if node.dtype.startswith("uint"):
        return f"{x[0].inside(BITXOR)} ^ {2 ** (8 * ITEMSIZE[node.dtype]) - 1:#x}", BITXOR
    return f"~{x[0].inside(UNARY)}", UNARY


def _isnan(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
    return f"{x[0].inside(BITOR)} != {x[0].inside(BITOR)}", COMPARE


def _isinf(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
    return f'tl.abs({x[0].text}) == float("inf")', COMPARE


def _int_sign(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
    kind = TYPES[x[0].dtype]
    at = x[0].inside(BITOR)
    return f"({at} > 0).to({kind}) - ({at} < 0).to({kind})", ADD


def _tan(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
    return f"tl.sin({x[0].text}) / tl.cos({x[0].text})", MUL


def _quotient(node: Node, x: Sequence[Val], use: Use) -> str:
    """In float64: rounded to float32 it could come out whole where it is a little less."""
    wide = [cast_to(v, "float64", use) for v in x]
    return _infix("/", MUL)(node, wide, use)[0]


def _truncated(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
    return f"{use('truncate')}({_quotient(node, x, use)}).to({TYPES[x[0].dtype]})", ATOM


def _floored(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
    return f"tl.floor({_quotient(node, x, use)}).to({TYPES[x[0].dtype]})", ATOM


def _where(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
    return f"tl.where({', '.join(v.text for v in (x[0], exact(x[1]), exact(x[2])))})", ATOM


def _popcount(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
    width = 8 * ITEMSIZE[x[0].dtype]
    raw = bits_of(tensor(x[0]), f"uint{width}").inside(ATOM)
    text = f"{use('popcount')}({raw}.to(tl.uint32))"
    if width == 64:
        text += f" + {use('popcount')}(({raw} >> 32).to(tl.uint32))"
    return f"({text}).to({TYPES[x[0].dtype]})", ATOM


def _int_power(node: Node, x: Sequence[Val], use: Use) -> tuple[str, int]:
    raise Unsupported("a power of integers")


_AND, _OR, _XOR = _infix("&", BITAND), _infix("|", BITOR), _infix("^", BITXOR)

SCALAR_ROWS: dict[str, Row] = {
    "add": _sum, "sub": _infix("-", ADD), "mul": _product,
    "div": _infix("/", MUL),
    "floordiv": _of_kind(_floored, _down("//", "floor_div")),
    "truncdiv": _of_kind(_truncated, _infix("//", MUL)),
    "mod": _of_kind(_helper("floor_mod"), _down("%", "floor_mod")),
    "fmod": _infix("%", MUL),
    "max": _of_kind(_extreme("nan_max"), _call("maximum"), _OR),
    "min": _of_kind(_extreme("nan_min"), _call("minimum"), _AND),
    "pow": _of_kind(_helper("power"), _int_power),
    "neg": _unary("-"), "abs": _call("abs"),
    "sign": _of_kind(_helper("sign"), _int_sign),
    "floor": _of_kind(_call("floor"), _same_value), "ceil": _of_kind(_call("ceil"), _same_value),
    "round": _of_kind(_helper("round_even"), _same_value),
    "exp": _call("exp"), "exp2": _call("exp2"), "log": _call("log"), "log2": _call("log2"),
    "log1p": _helper("log1p"), "sqrt": _sqrt, "rsqrt": _rsqrt, "erf": _call("erf"),
    "tanh": _helper("tanh"), "sin": _call("sin"), "cos": _call("cos"), "tan": _tan,
    "asin": _helper("asin"), "acos": _helper("acos"),
    "atan": lambda node, x, use: (f"{use('arctan')}({tensor(x[0]).text})"
                                  f".to({TYPES[x[0].dtype]})", ATOM),
    "sinh": _helper("sinh"), "cosh": _helper("cosh"), "asinh": _helper("asinh"),
    "acosh": _helper("acosh"), "atanh": _helper("atanh"),
    "isnan": _isnan, "isinf": _isinf,
    "lt": _compare("<"), "le": _compare("<="), "gt": _compare(">"), "ge": _compare(">="),
    "eq": _compare("=="), "ne": _compare("!="),
    "and": _AND, "or": _OR, "xor": _XOR, "not": _unary("~"),
    "bitand": _AND, "bitor": _OR, "bitxor": _XOR, "bitnot": _bitnot,
    "shl": _infix("<<", SHIFT), "shr": _infix(">>", SHIFT),
    "popcount": _popcount,
    "where": _where,
}  # fmt: skip
