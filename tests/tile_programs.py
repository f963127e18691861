"""Three tile programs written by hand: what the vocabulary must be able to say.

An fp32 CPU GEMM with packed panels and register tiles; causal attention with chained folds; a
chunked gated delta rule; and the algebra of the last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from programs import algebra, gelu, inputs_of

from autosched.ir.extent import as_node, ext_cdiv
from autosched.ir.node import Extent, Node, Output, Pack, Program
from autosched.ir.ops import (
    buffer,
    carry,
    cast,
    const,
    dot,
    eq,
    exp,
    fold,
    forall,
    get,
    input_,
    iota,
    kernel,
    knob,
    load,
    max_,
    maximum,
    minimum,
    place,
    reaxis,
    scan,
    store,
    sum_,
    trisolve,
    where,
)

F32 = "float32"


def zero(value: float = 0.0) -> Node:
    return const(value, F32)


# ---- GEMM -------------------------------------------------------------------------------------


def gemm_tile(m: int, n: int, k: int) -> Program:
    """gelu(x w + bias), knobs MR and NR: w packed once in panels of NR columns, x packed by every
    grid step in panels of MR rows, MR x NR accumulators in registers."""
    mr, nr = knob("MR"), knob("NR")
    x = input_("x", {"m": m, "k": k})
    w = input_("w", {"k": k, "n": n}, kind="weight")
    bias = input_("bias", {"n": n}, kind="weight")
    m_o, m_u = iota("m.o", ext_cdiv(m, mr)), iota("m.u", mr)
    n_o, n_l = iota("n.o", ext_cdiv(n, nr)), iota("n.l", nr)
    row, col = m_o * mr + m_u, n_o * nr + n_l
    k_at = iota("k", k)

    panels = buffer("w.panels", (ext_cdiv(n, nr), k, nr), F32, "packed")
    in_n = col < n
    packed = where(in_n, reaxis(w, {"n": minimum(col, n - 1)}), 0.0)
    rows = buffer("x.panels", (ext_cdiv(m, mr), k, mr), F32, "scratch")
    pack_x = store(rows, load(x, [row, k_at], mask=row < m, fill=zero()), [m_o, k_at, m_u])

    term = load(rows, [m_o, k_at, m_u]) * load(panels, [n_o, k_at, n_l])
    acc = carry("acc", F32, {"m.u": mr, "n.l": nr})
    total = get(fold("k", [(0, k)], {"acc": (zero(), acc + place(term, "register"))}))
    y = buffer("y", (m, n), F32, "output")
    out = gelu(total + load(bias, [col], mask=in_n, fill=zero()))
    put = store(y, out, [row, col], mask=(row < m) & in_n)

    def loop(axis: Node, hi: Node | int, bind: str, *body: Node) -> Node:
        return forall(axis.attr[0], 0, hi, bind, body)

    tiles_m, tiles_n = as_node(ext_cdiv(m, mr)), as_node(ext_cdiv(n, nr))
    micro = loop(m_u, mr, "unroll", loop(n_l, nr, "lane", put))
    body = loop(
        m_o, tiles_m, "grid",
        loop(k_at, k, "serial", loop(m_u, mr, "unroll", pack_x)),
        loop(n_o, tiles_n, "serial", micro),
    )  # fmt: skip
    return Program(
        "tile",
        (x, w, bias),
        (Output("y", ("m", "n"), F32, (m, n)),),
        (kernel("gemm", [body]),),
        (Pack(panels, ("n.o", "k", "n.l"), packed),),
    )


# ---- causal attention -------------------------------------------------------------------------


def attention_tile(b: int, h: int, t: int, d: int, groups: int = 1) -> Program:
    """Causal attention, knobs BM and BN: a fold over full tiles, then one over masked tiles."""
    bm, bn = knob("BM"), knob("BN")
    q = input_("q", {"b": b, "h": h, "i": t, "d": d})
    k = input_("k", {"b": b, "g": h // groups, "j": t, "d": d})
    v = input_("v", {"b": b, "g": h // groups, "j": t, "e": d})
    b_at, h_at = iota("b", b), iota("h", h)
    m_o, m_i = iota("m.o", ext_cdiv(t, bm)), iota("m.i", bm)
    n_o, n_i = iota("n.o", ext_cdiv(t, bn)), iota("n.i", bn)
    row, col = m_o * bm + m_i, n_o * bn + n_i
    zero_at = const(0, "int32")

    def box(handle: Node, head: Node, start: Node, axis: str, size: Extent, other: str) -> Node:
        at = start + iota(axis, size)
        dims = (None, None, (axis, size, 1), (other, d, 1))
        return load(handle, [b_at, head, start, zero_at], dims, at < t, zero())

    queries = place(box(q, h_at, m_o * bm, "m.i", bm, "d"), "register")
    keys = box(k, h_at // groups, n_o * bn, "n.i", bn, "d")
    values = box(v, h_at // groups, n_o * bn, "n.i", bn, "e")
    top = carry("max", F32, {"m.i": bm})
    total = carry("sum", F32, {"m.i": bm})
    acc = carry("acc", F32, {"m.i": bm, "e": d})

    def step(scores: Node) -> list[Node]:
        """The three states after one tile of scores[m.i, n.i]; -inf rows change nothing."""
        new = maximum(top, max_("n.i", scores))
        dead = eq(new, -math.inf)
        shift = where(dead, 0.0, new)
        p, fix = exp(scores - shift), exp(top - shift)
        return [new, total * fix + sum_("n.i", p), acc * fix + dot(p, values, "n.i")]

    def chain(bounds: tuple[Node | int, Node | int], start: Sequence[Node], masked: bool) -> Node:
        scores = dot(queries, keys, "d") * (1 / math.sqrt(d))
        if masked:
            scores = where((row >= col) & (col < t), scores, -math.inf)
        names = ("max", "sum", "acc")
        return fold("n.o", [bounds], dict(zip(names, zip(start, step(scores)))))

    first_masked = m_o * bm // bn
    end = (minimum((m_o + 1) * bm, t) + (bn - 1)) // bn
    full = chain((0, first_masked), [zero(-math.inf), zero(), zero()], masked=False)
    last = chain((first_masked, end), [get(full, n) for n in range(3)], masked=True)
    o = buffer("o", (b, h, t, d), F32, "output")
    dims = (None, None, ("m.i", bm, 1), ("e", d, 1))
    put = store(o, get(last, 2) / get(last, 1), [b_at, h_at, m_o * bm, zero_at], dims, row < t)
    nest = put
    for axis, count in (("m.o", as_node(ext_cdiv(t, bm))), ("h", h), ("b", b)):
        nest = forall(axis, 0, count, "grid", [nest])
    return Program(
        "tile",
        (q, k, v),
        (Output("o", ("b", "h", "i", "e"), F32, (b, h, t, d)),),
        (kernel("attention", [nest]),),
    )


# ---- gated delta rule -------------------------------------------------------------------------


def delta_inputs(b: int, h: int, t: int, d: int, e: int) -> dict[str, Node]:
    """q, k, g (log decay) over d; v over e; beta."""
    rows = {"b": b, "h": h, "t": t}
    wide = {n: input_(n, {**rows, "d": d}) for n in ("q", "k", "g")}
    return {**wide, "v": input_("v", {**rows, "e": e}), "beta": input_("beta", rows)}


def delta_algebra(b: int, h: int, t: int, d: int, e: int) -> Program:
    """o[b, h, t, e] and the last state s[b, h, d, e], step by step."""
    x = delta_inputs(b, h, t, d, e)
    state = carry("S", F32, {"b": b, "h": h, "d": d, "e": e})
    decayed = exp(x["g"]) * state
    u = x["beta"] * (x["v"] - sum_("d", x["k"] * decayed))
    new = decayed + x["k"] * u
    out = sum_("d", x["q"] * new) * (1 / math.sqrt(d))
    loop = fold("t", [(0, t)], {"S": (zero(), new)}, [out])
    dims = {"o": ("b", "h", "t", "e"), "s": ("b", "h", "d", "e")}
    return algebra(dims, o=get(loop, 1), s=get(loop, 0))


def delta_tile(b: int, h: int, t: int, d: int, e: int) -> Program:
    """The same in chunks of C rows: one triangular solve a chunk, log decays by a scan."""
    c = knob("C")
    x = delta_inputs(b, h, t, d, e)
    b_at, h_at, chunk = iota("b", b), iota("h", h), iota("t.o", ext_cdiv(t, c))
    start, row, col = chunk * c, iota("r", c), iota("c", c)

    def rows(name: str, axis: str, other: str | None, size: int = 1) -> Node:
        dims = (None, None, (axis, c, 1), *([] if other is None else [(other, size, 1)]))
        at = [b_at, h_at, start, *([] if other is None else [const(0, "int32")])]
        return load(x[name], at, dims, start + iota(axis, c) < t, zero())

    def turned(value: Node) -> Node:
        return reaxis(value, {"r": iota("c", c)})

    q, k, g, v, beta = (
        rows("q", "r", "d", d), rows("k", "r", "d", d), rows("g", "r", "d", d),
        rows("v", "r", "e", e), rows("beta", "r", None),
    )  # fmt: skip
    decay = place(scan("sum", "r", g), "shared")  # log of the running product
    # exp(decay[r] - decay[c]) is at most 1 on and below the diagonal; above it is not wanted.
    between = exp(where(row >= col, decay - turned(decay), -math.inf))
    state = carry("S", F32, {"d": d, "e": e})
    lower = beta * sum_("d", k * turned(k) * between)
    known = beta * (v - dot(k * exp(decay), state, "d"))
    u = trisolve(lower, known, "r", "c")
    weights = sum_("d", q * turned(k) * between)
    out = dot(q * exp(decay), state, "d") + dot(weights, turned(u), "c")
    final = reaxis(decay, {"r": as_node(c) - 1})
    new = exp(final) * state + dot(k * exp(final - decay), u, "r")
    loop = fold(
        "t.o", [(0, as_node(ext_cdiv(t, c)))], {"S": (zero(), new)}, [out * (1 / math.sqrt(d))]
    )
    o = buffer("o", (b, h, t, e), F32, "output")
    s = buffer("s", (b, h, d, e), F32, "output")
    zero_at = const(0, "int32")
    put_o = store(
        o, get(loop, 1), [b_at, h_at, start, zero_at], (None, None, ("r", c, 1), ("e", e, 1)),
        start + row < t,
    )  # fmt: skip
    put_s = store(
        s, cast(get(loop, 0), F32), [b_at, h_at, zero_at, zero_at],
        (None, None, ("d", d, 1), ("e", e, 1)),
    )  # fmt: skip
    chunks = forall("t.o", 0, as_node(ext_cdiv(t, c)), "serial", [put_o])
    nest = forall("b", 0, b, "grid", [forall("h", 0, h, "grid", [chunks, put_s])])
    outputs = (
        Output("o", ("b", "h", "t", "e"), F32, (b, h, t, e)),
        Output("s", ("b", "h", "d", "e"), F32, (b, h, d, e)),
    )
    return Program("tile", inputs_of(nest), outputs, (kernel("delta", [nest]),))
