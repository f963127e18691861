"""match_dot: sums of products as `dot` nodes, with the type of their accumulator written down.

    before:  reduce sum k { cast f32 x[m,k] * cast f32 w[k,n] }      (x, w bfloat16)
    after:   dot k x[m,k], w[k,n]  acc f32
    args:    nest.
    Illegal: NO_NEST, NO_PRODUCT (no sum of a product of two values that both vary along its axes).

Half-precision operands accumulate in float32, others in their own type. A target with matrix
units maps a dot to them; `as_reduce` gives the sum back for targets that have none.
"""

from __future__ import annotations

from autosched.ir.loops import Nest, edit_nests
from autosched.ir.node import Node, Program, replace_nodes, rewrite, walk
from autosched.ir.ops import cast, dot, sum_
from autosched.ir.rules.action import Action, Illegal
from autosched.ir.scalar import FLOATS, ITEMSIZE


def apply(program: Program, action: Action) -> Program | Illegal:
    name = action["nest"]
    seen: list[str] = []
    matched: list[Node] = []

    def edit(nest: Nest) -> list[Node]:
        if nest.name != name:
            return [nest.build()]
        seen.append(name)
        table = {n: d for n in walk(nest.value) if (d := matching(n)) is not None}
        matched.extend(table)
        return [nest.with_value(replace_nodes(nest.value, table)).build()]

    body = tuple(edit_nests(k, edit) for k in program.body)
    if not seen:
        return Illegal("NO_NEST", f"no nest is named {name}")
    if not matched:
        return Illegal("NO_PRODUCT", f"{name} has no sum of a product")
    return program.with_body(*body)


def matching(node: Node) -> Node | None:
    """The dot that a reduce is, or None."""
    if node.op != "reduce" or node.attr[0] != "sum" or node.src[0].op != "map":
        return None
    product, axes = node.src[0], node.attr[1]
    if product.attr[0] != "mul" or node.dtype not in FLOATS:
        return None
    operands = tuple(map(_stored, product.src))
    if any(a not in x.names for a in axes for x in operands):
        return None
    if operands[0].dtype != operands[1].dtype:
        operands = (product.src[0], product.src[1])
    acc = "float32" if ITEMSIZE[node.dtype] < 4 else node.dtype
    return cast(dot(*operands, axes, acc), node.dtype)


def _stored(x: Node) -> Node:
    """What was widened to float32, as it was: products of halves are exact there."""
    widened = x.op == "map" and x.attr[0] == "cast:float32"
    return x.src[0] if widened and x.src[0].dtype in ("float16", "bfloat16") else x


def as_reduce(root: Node) -> Node:
    """`root` with every dot as the sum of products that it is."""

    def fix(node: Node) -> Node:
        if node.op != "dot":
            return node
        axes, acc = node.attr[:2]
        a, b = (cast(s, acc) for s in node.src)
        return sum_(axes, a * b)

    return rewrite(root, fix)
