"""The rows of contractions: products summed over shared dimensions, in float32 for halves."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from autosched.ir.frontend.call import Call, Row, Unsupported, wide
from autosched.ir.frontend.elementwise import joined
from autosched.ir.frontend.reduction import sum_over
from autosched.ir.frontend.tensor import Names, Tensor, Term, unify
from autosched.ir.node import Node
from autosched.ir.ops import cast


def contract(names: Names, out: Sequence[Hashable], *terms: Term) -> Tensor:
    """The product of the terms summed over the labels that `out` does not name.

    Half precision is accumulated in float32, and the result is float32 then.
    """
    nodes, axes = unify(names, *terms)
    product = wide(nodes[0])
    for node in nodes[1:]:
        product = product * wide(node)
    bound = tuple(a for label, dim in axes.items() if label not in out for a in dim)
    return Tensor(sum_over(product, bound), tuple(axes[label] for label in out))


def _rounded(x: Tensor, dtype: str) -> Tensor:
    return x.with_node(cast(x.node, dtype))


def matmul(names: Names, a: Tensor, b: Tensor) -> Tensor:
    """numpy.matmul of tensors of any rank above 0, not rounded to half precision yet."""
    rank = max(a.rank, b.rank)
    batch = [("batch", n) for n in range(rank - 2)]
    left = [*batch[len(batch) - max(a.rank - 2, 0) :], "m", "k"][-a.rank :]
    right = [*batch[len(batch) - max(b.rank - 2, 0) :], "k", "n"] if b.rank > 1 else ["k"]
    if a.rank == 1:
        left = ["k"]
    used = {*left, *right}
    out = [x for x in (*batch, "m", "n") if x in used]
    return contract(names, out, (a, left), (b, right))


def _matmul(call: Call) -> Tensor:
    a, b = call.x(0), call.x(1)
    if not a.rank or not b.rank:
        raise Unsupported("of scalars")
    return _rounded(matmul(call.names, a, b), a.dtype)


def _gemm(call: Call) -> Tensor:
    a, b = call.x(0), call.x(1)
    left = ["k", "m"] if call.attr("transA", 0) else ["m", "k"]
    right = ["n", "k"] if call.attr("transB", 0) else ["k", "n"]
    y = contract(call.names, ["m", "n"], (a, left), (b, right))
    alpha, beta = call.attr("alpha", 1.0), call.attr("beta", 1.0)
    if alpha != 1.0:
        y = y.with_node(_scaled(y.node, alpha))
    if call.has(2) and beta != 0.0:
        y = joined(call, lambda v, c: v + _scaled(cast(c, v.dtype), beta), y, call.x(2))
    return _rounded(y, a.dtype)


def _scaled(node: Node, factor: float) -> Node:
    if factor == 1.0:
        return node
    if node.dtype.startswith(("int", "uint")) and not float(factor).is_integer():
        raise Unsupported("of integers with a fractional factor")
    return node * factor


def _einsum(call: Call) -> Tensor:
    text = call.attr("equation").replace(" ", "")
    left, arrow, right = text.partition("->")
    tensors = [call.x(n) for n in range(len(call.inputs))]
    parts = left.split(",")
    if len(parts) != len(tensors):
        raise Unsupported(f"equation {text!r} with {len(tensors)} operands")
    spread = max((x.rank - len(p.replace("...", "")) for x, p in zip(tensors, parts)
                  if "..." in p), default=0)  # fmt: skip
    dots: list[Hashable] = [("dots", n) for n in range(spread)]
    terms = [(x, _labels(p, x.rank, dots)) for x, p in zip(tensors, parts)]
    if arrow:
        out = _labels(right, len(right.replace("...", "")) + spread * ("..." in right), dots)
    else:
        letters = left.replace(",", "").replace(".", "")
        out = [*dots, *sorted(c for c in set(letters) if letters.count(c) == 1)]
    return _rounded(contract(call.names, out, *terms), tensors[0].dtype)


def _labels(part: str, rank: int, dots: Sequence[Hashable]) -> list[Hashable]:
    """One label per dimension; an ellipsis stands for the last of `dots`."""
    before, ellipsis, after = part.partition("...")
    if not ellipsis:
        return list(before)
    count = rank - len(before) - len(after)
    return [*before, *dots[len(dots) - count :], *after]


ROWS: tuple[Row, ...] = (
    Row("MatMul", (13,), _matmul),
    Row("Gemm", (13,), _gemm),
    Row("Einsum", (12, 28), _einsum),
)
