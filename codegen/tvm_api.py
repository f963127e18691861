"""TIR nodes from plain calls, and a shared library from functions made of them.

In: Python numbers and nodes returned by these functions. Out: expression and statement nodes,
and by `build` the bytes of an ELF shared object whose symbols are plain C functions.

Conventions
- All buffers are flat. An index is an int32 or int64 scalar; `load`/`store` move `lanes` elements.
- Python ints and floats take the type of the operand they meet; a scalar node never broadcasts
  by itself (`splat`).
- A node used twice is compiled twice, so whatever is used twice is bound: `Block.let`.
- Loop and let variables are unique within a function.
- Nothing is simplified: float semantics are IEEE's, NaN and signed zero included (TVM's own
  simplifier folds x*0 and x != x). LLVM may contract a*b+c into an fma.
- Register accumulators are buffers of one vector each, accessed whole at index 0: LLVM promotes
  them. Larger ones, or ones indexed by a loop variable, stay in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from autosched.codegen.tvm_build import LAUNCH_SLOT as LAUNCH_SLOT
from autosched.codegen.tvm_build import build as build
from autosched.codegen.tvm_build import codegen as codegen
from autosched.codegen.tvm_build import target as target
from autosched.codegen.tvm_import import tvm
from autosched.ir.scalar import ITEMSIZE

Expr = Any
Stmt = Any
Value = Any  # Expr | int | float


@cache
def _type(dtype: str) -> Any:
    return tvm().ir.PrimType(dtype)


@cache
def _op(name: str) -> Any:
    return tvm().ir.Op.get("tirx." + name)


@cache
def _intrinsic(name: str) -> Any:
    if number := tvm().intrinsic(name):
        return tvm().base.IntImm("uint32", number, None)
    raise ValueError(f"LLVM has no intrinsic {name!r}")


# ---------------------------------------------------------------- types and constants


def with_lanes(dtype: str, lanes: int) -> str:
    """`float32` and 16 -> `float32x16`; one lane is the scalar."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def dtype_of(x: Expr) -> str:
    """The dtype of a node, as `float32` or `float32x16`."""
    return str(x.ty.dtype)


def scalar_of(x: Expr) -> str:
    """The dtype of one lane of a node."""
    return dtype_of(x).partition("x")[0]


def lanes_of(x: Expr) -> int:
    return int(dtype_of(x).partition("x")[2] or 1)


def var(name: str, dtype: str = "int32") -> Expr:
    """A new variable; names need not be unique, variables are."""
    return tvm().ir.Var(name, _type(dtype))


def const(value: int | float | bool, dtype: str = "int32") -> Expr:
    """A constant; a vector dtype splats it."""
    scalar, _, lanes = dtype.partition("x")
    base = tvm().base
    if scalar.startswith(("float", "bfloat")):
        node = base.FloatImm(scalar, float(value), None)
    else:
        node = base.IntImm(scalar, int(value), None)
    return splat(node, int(lanes)) if lanes else node


def _node(x: Value, like: Value = None) -> Expr:
    if not isinstance(x, (int, float)):
        return x
    if isinstance(like, (int, float)) or like is None:
        return const(x, "float32" if isinstance(x, float) else "int32")
    return const(x, dtype_of(like))


def splat(x: Value, lanes: int) -> Expr:
    """A scalar in every lane."""
    node = _node(x)
    if lanes == 1:
        return node
    return tvm().prim.Broadcast(node, const(lanes), None)


def ramp(base: Value, lanes: int, stride: Value = 1) -> Expr:
    """base, base + stride, ...; as an index with stride 1 it is one vector access."""
    node = _node(base)
    if lanes == 1:
        return node
    return tvm().prim.Ramp(node, _node(stride, node), const(lanes), None)


# ---------------------------------------------------------------- operators

_BINARY = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "min": "Min", "max": "Max",
    "floordiv": "FloorDiv", "floormod": "FloorMod", "truncmod": "Mod", "eq": "EQ", "ne": "NE",
    "lt": "LT", "le": "LE", "gt": "GT", "ge": "GE", "and": "And", "or": "Or",
    "bit_and": "BitwiseAnd", "bit_or": "BitwiseOr", "bit_xor": "BitwiseXor", "shl": "LShift",
    "shr": "RShift",
}  # fmt: skip

_FOLD: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
    "min": min, "max": max, "floordiv": lambda a, b: a // b, "floormod": lambda a, b: a % b,
}  # fmt: skip

_NEUTRAL = {"add": 0, "sub": 0, "mul": 1, "floordiv": 1}  # of the right operand, ints only

UNARY = {
    "floor": "llvm.floor", "ceil": "llvm.ceil", "trunc": "llvm.trunc", "rint": "llvm.rint",
    "round_even": "llvm.roundeven", "sqrt": "llvm.sqrt", "abs": "llvm.fabs",
}  # fmt: skip


def binary(name: str, a: Value, b: Value) -> Value:
    """`name` of `_BINARY` applied to a and b; ints fold, and a neutral int vanishes.

    max(a, b) is a > b ? a : b: with a NaN among them it yields b.
    """
    if isinstance(a, int) and isinstance(b, int) and name in _FOLD:
        return _FOLD[name](a, b)
    if isinstance(b, int) and _NEUTRAL.get(name) == b:
        return a
    if isinstance(a, int) and name in ("add", "mul") and _NEUTRAL[name] == a:
        return b
    left, right = _node(a, b), _node(b, a)
    if name == "ne":  # TVM's NE is ordered, false on NaN
        return logical_not(tvm().prim.EQ(left, right, None))
    return getattr(tvm().prim, _BINARY[name])(left, right, None)


def add(a: Value, b: Value) -> Value:
    return binary("add", a, b)


def sub(a: Value, b: Value) -> Value:
    return binary("sub", a, b)


def mul(a: Value, b: Value) -> Value:
    return binary("mul", a, b)


def logical_not(x: Expr) -> Expr:
    return tvm().prim.Not(x, None)


def unary(name: str, x: Expr) -> Expr:
    """`name` of `UNARY`: one instruction a vector."""
    return llvm(UNARY[name], dtype_of(x), x)


def llvm(name: str, dtype: str, *args: Expr) -> Expr:
    """A pure LLVM intrinsic, by the name without type suffix."""
    return _call("call_llvm_pure_intrin", _type(dtype), _intrinsic(name), *args)


def _call(name: str, result: Any, *args: Expr) -> Expr:
    return tvm().base.Call(result, _op(name), list(args), None, [], None)


def libm(name: str, *operands: Expr) -> Expr:
    """A function of the C library on each lane; float32 has the suffix f."""
    scalar = dtype_of(operands[0]).partition("x")[0]
    symbol = name + ("f" if scalar == "float32" else "")
    count = lanes_of(operands[0])
    if count == 1:
        return tvm().tirx.call_pure_extern(scalar, symbol, *operands)
    rows = [[shuffle([x], [i]) for x in operands] for i in range(count)]
    results = [tvm().tirx.call_pure_extern(scalar, symbol, *row) for row in rows]
    return shuffle(results, range(count))


def fma(a: Expr, b: Expr, c: Expr) -> Expr:
    """a*b + c, rounded once."""
    return llvm("llvm.fma", dtype_of(c), a, b, c)


def select(condition: Expr, a: Value, b: Value) -> Expr:
    """a where the condition holds, else b; both are evaluated."""
    return tvm().prim.Select(condition, _node(a, b), _node(b, a), None)


def cast(x: Expr, dtype: str) -> Expr:
    """To the scalar dtype, lanes kept; float to int truncates; to bool tests for nonzero."""
    target = with_lanes(dtype, lanes_of(x))
    return x if target == dtype_of(x) else tvm().prim.Cast(target, x, None)


def bitcast(x: Expr, dtype: str) -> Expr:
    """The same bits as another scalar dtype of equal width, lanes kept."""
    return _call("reinterpret", _type(with_lanes(dtype, lanes_of(x))), x)


def shuffle(vectors: Sequence[Expr], lanes: Sequence[int]) -> Expr:
    """The named lanes of the vectors, numbered on from one to the next; one lane is a scalar."""
    return tvm().prim.Shuffle(list(vectors), [const(i) for i in lanes], None)


# ---------------------------------------------------------------- memory


@dataclass(frozen=True)
class Buffer:
    """A flat array. `pointer` is the parameter it comes from, or None where it is allocated.

    dtype: element type, bool is stored as uint8. elems: element count (a bound, for parameters).
    """

    name: str
    dtype: str
    elems: int
    node: Any
    pointer: Any = None


def _buffer(name: str, dtype: str, elems: int, align: int, pointer: Any) -> Buffer:
    node = tvm().tirx.decl_buffer(
        (const(elems, "int64"),), dtype, name, scope="global", data_alignment=align, layout=None
    )
    return Buffer(name, dtype, elems, node, pointer)


def parameter(name: str, dtype: str, elems: int = 1 << 40) -> Buffer:
    """An array passed as a raw pointer, aligned to its element."""
    pointer = tvm().ir.Var(name, tvm().ir.PointerType(_type(dtype), "global"))
    return _buffer(name, dtype, elems, ITEMSIZE[dtype], pointer)


def local(name: str, dtype: str, elems: int) -> Buffer:
    """An array on the stack of the task that allocates it: registers, or scratch of any size.

    Aligned to 64 bytes. Keep scratch under about 256 KiB: threads have stacks of 8 MiB or less.
    """
    return _buffer(name, dtype, elems, 64, None)


def alloc(buffer: Buffer) -> Stmt:
    """Makes a `local` visible to the statements after it in the same block."""
    # Without the annotation, TVM moves 1 KiB and more to a heap workspace.
    return tvm().tir.AllocBuffer(buffer.node, {"disable_lower_builtin": const(1, "bool")}, None)


def _index(index: Value, lanes: int) -> Expr:
    return _node(index) if lanes == 1 else ramp(index, lanes)


def load(buffer: Buffer, index: Value, lanes: int = 1, mask: Expr | None = None) -> Expr:
    """`lanes` elements from `index` on; an index vector gathers. Masked-off lanes read as 0."""
    where = _index(index, lanes)
    if mask is None:
        return tvm().tir.BufferLoad(buffer.node, [where], None)
    return _call("masked_load", _type(with_lanes(buffer.dtype, lanes)), buffer.node, where, mask)


def store(buffer: Buffer, index: Value, value: Value, mask: Expr | None = None) -> Stmt:
    """Writes every lane of `value` from `index` on; masked-off lanes are left alone."""
    value = _node(value, const(0, buffer.dtype))
    where = _index(index, lanes_of(value)) if isinstance(index, int) or lanes_of(index) == 1 \
        else index  # fmt: skip
    if mask is None:
        return tvm().tir.BufferStore(buffer.node, value, [where], None)
    return evaluate(_call("masked_store", _type("void"), buffer.node, value, where, mask))


def tail_mask(valid: Value, lanes: int) -> Expr:
    """True in the first `valid` lanes."""
    return binary("lt", ramp(0, lanes), splat(valid, lanes))


def prefetch(buffer: Buffer, index: Value, locality: int = 3) -> Stmt:
    """Asks for the cache line of an element; locality 3 keeps it in all levels."""
    address = tvm().tirx.address_of(load(buffer, index))
    return evaluate(
        _call("call_llvm_intrin", _type("void"), _intrinsic("llvm.prefetch"), address,
              const(0), const(locality), const(1))
    )  # fmt: skip


# ---------------------------------------------------------------- statements


def evaluate(x: Expr) -> Stmt:
    return tvm().tir.Evaluate(x, None)


def bind(variable: Expr, value: Value) -> Stmt:
    """variable = value, visible to the statements after it in the same block."""
    return tvm().tir.Bind(variable, _node(value, variable), None)


def seq(*parts: Stmt | Iterable[Stmt]) -> Stmt:
    """Statements and lists of them, in order."""
    flat: list[Stmt] = []
    for part in parts:
        flat.extend(part) if isinstance(part, (list, tuple)) else flat.append(part)
    if not flat:
        return evaluate(const(0))
    return flat[0] if len(flat) == 1 else tvm().tir.SeqStmt(flat, None)


_KINDS = {"serial": 0, "parallel": 1, "unroll": 3}


def loop(variable: Expr, extent: Value, body: Stmt, kind: str = "serial", start: Value = 0) -> Stmt:
    """for variable in [start, start + extent). A parallel loop hands each thread one contiguous
    run of iterations, and may not stand in another."""
    return tvm().tir.For(
        variable, _node(start, variable), _node(extent, variable), _KINDS[kind], body,
        None, {}, None, None,
    )  # fmt: skip


def when(condition: Expr, then: Stmt, otherwise: Stmt | None = None) -> Stmt:
    """A branch on a scalar."""
    return tvm().tir.IfThenElse(condition, then, otherwise, None)


_ATOMS = frozenset(("IntImm", "FloatImm", "Var"))


class Block:
    """Statements in the order they are added: `let` names a value, `add` takes a statement."""

    def __init__(self) -> None:
        self.parts: list[Stmt] = []

    def add(self, *parts: Stmt) -> None:
        self.parts.extend(parts)

    def let(self, value: Value, name: str = "t", position: bool = False) -> Value:
        """The value under a name, so that using it twice computes it once.

        position: it is made of loop variables, and addresses are made of it.
        """
        if isinstance(value, (int, float)) or type(value).__name__ in _ATOMS:
            return value
        dtype = dtype_of(value)
        if position and dtype in ("int32", "int64"):
            bound = var(name, dtype)
            self.parts.append(bind(bound, value))
            return bound
        if dtype.startswith("boolx"):  # a buffer would unpack the mask
            return value
        # TVM's analyses substitute bound variables, which grows exponentially along a formula:
        # a register says the same to LLVM and stops them.
        scalar, _, lanes = dtype.partition("x")
        register = self.allocate(local(name, scalar, int(lanes or 1)))
        self.parts.append(store(register, 0, value))
        return load(register, 0, register.elems)

    def mask(self, value: Expr) -> Expr:
        """A vector of bool under a name: kept as bytes, which LLVM folds into the test again."""
        lanes = with_lanes("uint8", lanes_of(value))
        kept = self.let(select(value, const(1, lanes), const(0, lanes)), "mask")
        return logical_not(binary("eq", kept, const(0, lanes)))

    def allocate(self, buffer: Buffer) -> Buffer:
        self.parts.append(alloc(buffer))
        return buffer

    def stmt(self) -> Stmt:
        return seq(self.parts)


def reduce_lanes(block: Block, combine: Callable[[Expr, Expr], Expr], x: Expr) -> Expr:
    """All lanes of x folded to a scalar, by halves: log2(lanes) steps in a fixed order."""
    lanes = lanes_of(x)
    while lanes > 1:
        half = lanes // 2
        x = block.let(x, f"half{lanes}")
        x = combine(shuffle([x], range(half)), shuffle([x], range(half, lanes)))
        lanes = half
    return block.let(x, "reduced")


# ---------------------------------------------------------------- functions and libraries


def function(name: str, params: Sequence[Any], body: Stmt, noalias: bool = True) -> Any:
    """A PrimFunc that becomes `int32_t name(...)`: 0, or nonzero where a task failed.

    params: `Buffer`s made by `parameter` (passed as pointers) and int variables, in C order.
    noalias: no output overlaps another parameter.
    """
    t = tvm()
    buffers = [p for p in params if isinstance(p, Buffer)]
    body = seq([t.tir.DeclBuffer(b.node, b.pointer, None) for b in buffers], body,
               t.tir.Return(const(0), None))  # fmt: skip
    for b in reversed(buffers):
        align = const(ITEMSIZE[b.dtype])
        body = t.tir.AttrStmt(b.pointer, "storage_alignment", align, body, None)
    nodes = [p.pointer if isinstance(p, Buffer) else p for p in params]
    made = t.tirx.PrimFunc(nodes, body, ret_type=_type("int32"))
    return made.with_attrs({"global_symbol": name, "tirx.noalias": noalias})
