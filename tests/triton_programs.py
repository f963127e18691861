"""GPU tile programs written by hand, with small helpers: what the Triton emitter is tested on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from programs import gelu, inputs_of

from autosched.ir.node import Node, Output, Program
from autosched.ir.ops import (
    buffer,
    carry,
    cast,
    const,
    dot,
    exp,
    fold,
    forall,
    get,
    input_,
    iota,
    kernel,
    load,
    max_,
    rsqrt,
    store,
    sum_,
)

F32 = "float32"
Facts = tuple[tuple[str, int], ...]
PLAIN: Facts = (("warps", 4), ("stages", 1))


def gpu_kernel(
    name: str, grid: Mapping[str, int], body: Sequence[Node], facts: Facts = PLAIN,
    bind: str = "grid",
) -> Node:  # fmt: skip
    """A kernel whose grid has these axes, the last one fastest."""
    for axis, count in reversed(list(grid.items())):
        body = [forall(axis, 0, count, bind, body)]
    return kernel(name, body, facts=dict(facts))


def tile_program(kernels: Sequence[Node], **outputs: Node) -> Program:
    """A tile program; the buffers of its outputs by name."""
    outs = tuple(
        Output(name, tuple(f"x{n}" for n in range(len(b.attr[1]))), b.dtype, b.attr[1])
        for name, b in outputs.items()
    )
    return Program("tile", inputs_of(*kernels), outs, tuple(kernels))


def output(name: str, extents: Sequence[int], dtype: str = F32) -> Node:
    return buffer(name, extents, dtype, "output")


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def span(axis: str, size: int, block: int) -> tuple[Node, Node]:
    """(start, coordinates) of a tile of `axis`: its blocks are axis.o, elements axis.i."""
    start = iota(f"{axis}.o", cdiv(size, block)) * block
    return start, start + iota(f"{axis}.i", block)


def zero(dtype: str = F32, value: float = 0.0) -> Node:
    return const(value, dtype)


def gemm(
    m: int, n: int, k: int, bm: int = 32, bn: int = 16, bk: int = 16, dtype: str = F32,
    facts: Facts = PLAIN, bind: str = "grid", precision: str = "", turned: bool = False,
) -> Program:  # fmt: skip
    """gelu(x w + bias) with bounds where tiles do not divide; turned: w is [n, k]."""
    x = input_("x", {"m": m, "k": k}, dtype)
    w = input_("w", {"n": n, "k": k} if turned else {"k": k, "n": n}, dtype, "weight")
    bias = input_("bias", {"n": n}, F32, "weight")
    (m_at, row), (n_at, col), (k_at, deep) = (
        span("m", m, bm), span("n", n, bn), span("k", k, bk),
    )  # fmt: skip
    in_k = deep < k
    m_dim, n_dim, k_dim = ("m.i", bm, 1), ("n.i", bn, 1), ("k.i", bk, 1)
    a = load(x, [m_at, k_at], [m_dim, k_dim], (row < m) & in_k, zero(dtype))
    w_starts, w_dims = ([n_at, k_at], [n_dim, k_dim]) if turned else (
        [k_at, n_at], [k_dim, n_dim])  # fmt: skip
    b = load(w, w_starts, w_dims, (col < n) & in_k, zero(dtype))
    acc = carry("acc", F32, {"m.i": bm, "n.i": bn})
    product = dot(a, b, "k.i", F32, precision)
    total = get(fold("k.o", [(0, cdiv(k, bk))], {"acc": (zero(), acc + product)}))
    out = gelu(total + load(bias, [n_at], [n_dim], col < n, zero()))
    y = output("y", (m, n), dtype)
    put = store(y, cast(out, dtype), [m_at, n_at], [m_dim, n_dim], (row < m) & (col < n))
    grid = {"m.o": cdiv(m, bm), "n.o": cdiv(n, bn)}
    return tile_program([gpu_kernel("gemm", grid, [put], facts, bind)], y=y)


def rows_program(
    name: str, t: int, c: int, block: int, value: Callable[[Node, Node, str], Node],
    fill: float = 0.0, rows: int = 1, dtype: str = F32,
) -> Program:  # fmt: skip
    """y = value(x, mask, axis) of whole rows, `rows` of them a program."""
    x = input_("x", {"t": t, "c": c}, dtype)
    t_at, row = span("t", t, rows)
    col = iota("c.i", block)
    dims = (("t.i", rows, 1), ("c.i", block, 1))
    keep = (row < t) & (col < c)
    tile = cast(load(x, [t_at, 0], dims, keep, zero(dtype, fill)), F32)
    y = output("y", (t, c), dtype)
    put = store(y, cast(value(tile, keep, "c.i"), dtype), [t_at, 0], dims, keep)
    return tile_program([gpu_kernel(name, {"t.o": cdiv(t, rows)}, [put])], y=y)


def softmax(t: int, c: int, block: int, rows: int = 1, dtype: str = F32) -> Program:
    def value(x: Node, keep: Node, axis: str) -> Node:
        p = exp(x - max_(axis, x))
        return p / sum_(axis, p)

    return rows_program("softmax", t, c, block, value, -math.inf, rows, dtype)


def layernorm(t: int, c: int, block: int, rows: int = 4) -> Program:
    from autosched.ir.ops import where

    def value(x: Node, keep: Node, axis: str) -> Node:
        mean = sum_(axis, x) / float(c)
        centred = where(keep, x - mean, 0.0)
        return centred * rsqrt(sum_(axis, centred * centred) / float(c) + 1e-5)

    return rows_program("layernorm", t, c, block, value, 0.0, rows)


def gather(n: int, rows: int, d: int, block: int, facts: Facts = PLAIN) -> Program:
    """y[i, :] = table[index[i], :], masked where the index is negative."""
    index = input_("index", {"i": n}, "int32")
    table = input_("table", {"r": rows, "d": d})
    i_at, i = span("i", n, block)
    at = load(index, [i_at], [("i.i", block, 1)], i < n, const(-1, "int32"))
    row = load(table, [at, 0], [None, ("d", d, 1)], at >= 0, zero())
    y = output("y", (n, d))
    put = store(y, row, [i_at, 0], [("i.i", block, 1), ("d", d, 1)], i < n)
    return tile_program([gpu_kernel("gather", {"i.o": cdiv(n, block)}, [put], facts)], y=y)
