"""The rows of Attention and RotaryEmbedding.

Query heads that share a key head become two axes, the key head and the number within its group,
so that keys and values are never repeated and no head number is divided.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import reduce

import numpy as np

from autosched.ir.extent import simplify
from autosched.ir.frontend.call import Call, Result, Row, Unsupported, wide
from autosched.ir.frontend.contraction import contract
from autosched.ir.frontend.elementwise import joined
from autosched.ir.frontend.gather import rows_at
from autosched.ir.frontend.movement import concat, pad_dim
from autosched.ir.frontend.reduction import MINUS_INF, pick_over, sum_over
from autosched.ir.frontend.tensor import (
    Dim,
    Names,
    Tensor,
    broadcast,
    index_of,
    narrow,
    reshape,
    transpose,
)
from autosched.ir.graph import ModelError
from autosched.ir.node import Node
from autosched.ir.ops import cast, const, eq, exp, map_, where


def _heads(call: Call, x: Tensor, attr: str) -> Tensor:
    """[b, s, heads * d] as [b, heads, s, d]; four dimensions stay as they are."""
    if x.rank == 4:
        return x
    count = call.attr(attr)
    if x.rank != 3 or not count or x.shape[2] % count:
        raise ModelError(f"{attr} is {count}, the operand's shape is {x.shape}")
    b, s, hidden = x.shape
    return transpose(reshape(call.names, x, (b, s, count, hidden // count)), (0, 2, 1, 3))


def _attention(call: Call) -> tuple[Result, ...]:
    names, packed = call.names, call.x(0).rank == 3
    q = _heads(call, call.x(0), "q_num_heads")
    k, v = (_heads(call, call.x(n), "kv_num_heads") for n in (1, 2))
    past = 0
    if call.has(4) and call.has(5):
        past = call.x(4).shape[2]
        k, v = concat(names, [call.x(4), k], 2), concat(names, [call.x(5), v], 2)
    b, heads, m, d = q.shape
    groups = k.shape[1]
    if heads % groups:
        raise ModelError(f"{heads} query heads do not divide among {groups} key heads")
    grouped = reshape(names, q, (b, groups, heads // groups, m, d))
    score = contract(
        names, ["b", "g", "r", "i", "j"], (grouped, ["b", "g", "r", "i", "d"]),
        (k, ["b", "g", "j", "d"]),
    )  # fmt: skip
    # As float32, so that the node and the written-out form are the same expression.
    scale = call.attr("scale", float(np.float32(1.0 / math.sqrt(d))))
    raw = score.with_node(score.node * scale)
    capped = raw
    if call.attr("softcap", 0.0) > 0:
        cap = call.attr("softcap")
        capped = raw.with_node(map_("tanh", raw.node / cap) * cap)
    masked, hides_rows = _masked(call, capped, groups, past)
    p = masked.with_node(_probabilities(masked, hides_rows, call.attr("softmax_precision") == 11))
    p = p.with_node(cast(p.node, q.dtype))
    y = contract(
        names, ["b", "g", "r", "i", "e"], (p, ["b", "g", "r", "i", "j"]), (v, ["b", "g", "j", "e"])
    )
    y = y.with_node(cast(y.node, q.dtype))
    mode = call.attr("qk_matmul_output_mode", 0)
    shown = _one_head_dim((raw, capped, masked, p)[mode])
    out = _one_head_dim(y)
    if packed:
        out = transpose(out, (0, 2, 1, 3))
        out = Tensor(out.node, (*out.dims[:2], out.dims[2] + out.dims[3]))
    return out, k, v, shown.with_node(cast(shown.node, q.dtype))


def _one_head_dim(x: Tensor) -> Tensor:
    """[b, g, r, ...] as [b, heads, ...]."""
    return Tensor(x.node, (x.dims[0], x.dims[1] + x.dims[2], *x.dims[3:]))


def _masked(call: Call, score: Tensor, groups: int, past: int) -> tuple[Tensor, bool]:
    """Scores with -inf where attention is not allowed and the bias added elsewhere.

    Returns: the masked scores, and whether a row may have no key at all.
    """
    terms = [score]
    length = score.shape[4]
    if call.has(3):
        terms.append(_mask(call.names, call.x(3), length, groups))
    if call.has(6):
        counts = call.x(6)
        terms.append(Tensor(cast(counts.node, "int32"), (*counts.dims, (), (), (), ())))
    nodes, dims = broadcast(call.names, *terms)
    value = nodes[0]
    mask = nodes[1] if call.has(3) else None
    valid = nodes[-1] if call.has(6) else None
    i, j = index_of(dims[3]), index_of(dims[4])
    offset: Node | int = past if valid is None or call.has(4) else valid - score.shape[3]
    position = i + offset
    tests: list[Node] = []
    left, right = call.attr("left_window_size", -1), call.attr("right_window_size", -1)
    if call.attr("is_causal", 0):
        tests.append(j <= position)
    if left >= 0:
        tests.append(j >= position - left)
    if right >= 0:
        tests.append(j <= position + right)
    if valid is not None:
        tests.append(j < valid)
    only_causal = len(tests) == bool(call.attr("is_causal", 0)) and isinstance(offset, int)
    if mask is not None and mask.dtype == "bool":
        tests.append(mask)
    elif mask is not None:
        value = value + cast(mask, value.dtype)
    if tests:
        allowed = reduce(operator.and_, map(simplify, tests))
        value = where(allowed, value, const(MINUS_INF, value.dtype))
    return Tensor(value, dims), mask is not None or not only_causal


def _mask(names: Names, mask: Tensor, length: int, groups: int) -> Tensor:
    """The mask as [b, g, r, i, j]; keys beyond its end are not allowed."""
    if mask.shape[-1] not in (1, length) or (mask.shape[-1] == 1 and length > 1):
        fill = const(False, "bool") if mask.dtype == "bool" else const(MINUS_INF, mask.dtype)
        mask = pad_dim(names, mask, mask.rank - 1, 0, length - mask.shape[-1], "constant", fill)
    if mask.rank < 3:
        return mask
    heads = mask.shape[-3]
    split = (groups, heads // groups) if heads != 1 else (1, 1)
    return reshape(names, mask, (*mask.shape[:-3], *split, *mask.shape[-2:]))


def _probabilities(score: Tensor, hides_rows: bool, double: bool) -> Node:
    """Softmax over the last dimension; rows without any key are 0, not NaN."""
    node, axes = score.node, score.dims[4]
    if double:
        node = cast(node, "float64")
    top = pick_over("max", node, axes)
    weights = exp(node - top)
    out = weights / sum_over(weights, axes)
    if not hides_rows:
        return out
    return where(eq(top, const(MINUS_INF, node.dtype)), const(0, node.dtype), out)


# ---- rotary embedding -------------------------------------------------------------------------


def _rotary(call: Call) -> Tensor:
    names, x = call.names, call.x(0)
    packed = x.rank == 3
    heads = transpose(_heads(call, x, "num_heads"), (0, 2, 1, 3))
    size = heads.shape[3]
    turned = call.attr("rotary_embedding_dim", 0) or size
    tables = [_rows(call, n) for n in (1, 2)]
    rest = narrow(names, heads, 3, turned, size - turned) if turned < size else None
    halves, at = _halves(names, narrow(names, heads, 3, 0, turned), call.attr("interleaved", 0))
    one, two = (narrow(names, halves, at, n, 1) for n in (0, 1))
    cos, sin = (Tensor(t.node, (*t.dims[:2], (), *_beside(t.dims[2], at))) for t in tables)

    def formula(sign: float) -> Callable[..., Node]:
        def build(a: Node, b: Node, c: Node, s: Node) -> Node:
            crossed = wide(s) * wide(b)
            straight = wide(c) * wide(a)
            out = straight - crossed if sign < 0 else straight + crossed
            return cast(out, x.dtype)

        return build

    real = joined(call, formula(-1), one, two, cos, sin)
    imaginary = joined(call, formula(1), two, one, cos, sin)
    both = concat(names, [real, imaginary], at)
    out = Tensor(both.node, (*both.dims[:3], both.dims[3] + both.dims[4]))
    if rest is not None:
        out = concat(names, [out, rest], 3)
    if not packed:
        return transpose(out, (0, 2, 1, 3))
    return Tensor(out.node, (*out.dims[:2], out.dims[2] + out.dims[3]))


def _rows(call: Call, n: int) -> Tensor:
    """Cosines or sines as [b, s, half]: given so, or as rows of a table at the positions."""
    table = call.x(n)
    if call.has(3):
        return rows_at(call.names, table, call.x(3), 0)
    if table.rank != 3:
        raise Unsupported("a table of angles without positions")
    return table


def _halves(names: Names, x: Tensor, interleaved: int) -> tuple[Tensor, int]:
    """The last dimension as (half, pair) or (pair, half), and where the pair is."""
    half = x.shape[3] // 2
    cut = (half, 2) if interleaved else (2, half)
    return reshape(names, x, (*x.shape[:3], *cut)), 4 if interleaved else 3


def _beside(dim: Dim, at: int) -> tuple[Dim, Dim]:
    """The dimension of the angles next to that of the pair."""
    return ((), dim) if at == 3 else (dim, ())


ROWS: tuple[Row, ...] = (
    Row("Attention", (23, 24, 25), _attention),
    Row("RotaryEmbedding", (23,), _rotary),
)
