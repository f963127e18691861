"""The ATen rows of contractions, attention, convolutions and pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from autosched.ir.frontend.aten import Aten, Scalar, row
from autosched.ir.frontend.call import Row, Unsupported, wide
from autosched.ir.frontend.contraction import contract, matmul
from autosched.ir.frontend.elementwise import joined
from autosched.ir.frontend.reduction import axes_of, mean_over
from autosched.ir.frontend.tensor import Tensor, expand, reshape
from autosched.ir.node import Node
from autosched.ir.ops import cast

Ints = Sequence[int]


def _matmul(c: Aten, a: Tensor, b: Tensor, *_: object) -> Tensor:
    return c.tensor(matmul(c.names, a, b))


def _linear(c: Aten, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x[..., k] * weight[n, k] + bias[n], rounded once."""
    lead: list[Hashable] = [("x", n) for n in range(x.rank - 1)]
    right = ["n", "k"] if weight.rank == 2 else ["k"]
    out = [*lead, *right[:-1]]
    y = contract(c.names, out, (x, [*lead, "k"]), (weight, right))
    if bias is not None:
        y = joined(c.call, lambda v, b: v + cast(b, v.dtype), y, bias)
    return c.tensor(y)


def _plus_product(c: Aten, x: Tensor, a: Tensor, b: Tensor, beta: Scalar, alpha: Scalar) -> Tensor:
    """beta * x + alpha * a b, rounded once; where beta is 0, x is not looked at."""
    y = matmul(c.names, a, b)
    if alpha != 1:
        y = y.with_node(y.node * alpha)
    if beta == 0:
        return c.tensor(y)

    def formula(product: Node, added: Node) -> Node:
        added = cast(added, product.dtype)
        return product + (added if beta == 1 else added * beta)

    return c.tensor(joined(c.call, formula, y, x))


def _outer(c: Aten, a: Tensor, b: Tensor) -> Tensor:
    return c.tensor(contract(c.names, ["m", "n"], (a, ["m"]), (b, ["n"])))


def _einsum(c: Aten, equation: str, tensors: Sequence[Tensor], *_: object) -> Tensor:
    return c.onnx("Einsum", *tensors, equation=equation)[0]


# ---- attention ---------------------------------------------------------------------------------


def _sdpa(
    c: Aten, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0,
    causal: bool = False, scale: float | None = None, grouped: bool = False,
) -> Tensor:  # fmt: skip
    """Attention over any leading dimensions; rows that a mask hides whole are 0."""
    if dropout:
        raise Unsupported("drops entries at random")
    lead = c.shape[:-2]
    n, s, d, e = q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1]
    heads = lead[-1] if lead else 1
    shared = k.shape[-3] if grouped else heads
    batch = lead[:-1]
    q4 = _four(c, q, (*batch, heads, n, d))
    k4, v4 = (_four(c, x, (*batch, shared, s, w)) for x, w in ((k, d), (v, e)))
    if mask is not None and (mask.rank > 4 or len(lead) > 2):
        mask = _four(c, mask, (*lead, n, s))
    scales = {} if scale is None else {"scale": float(scale)}
    y = c.onnx("Attention", q4, k4, v4, mask, is_causal=int(causal), **scales)[0]
    return reshape(c.names, y, (*lead, n, e))


def _four(c: Aten, x: Tensor, shape: Ints) -> Tensor:
    """A tensor broadcast to a shape, the dimensions in front of its last three as one."""
    x = expand(c.names, x, shape)
    return reshape(c.names, x, (math.prod(shape[:-3]), *shape[-3:]))


# ---- convolution -------------------------------------------------------------------------------


def _conv(
    c: Aten, x: Tensor, w: Tensor, bias: Tensor | None = None, stride: Ints = (1,),
    padding: Ints | str = (0,), dilation: Ints = (1,), groups: int = 1,
) -> Tensor:  # fmt: skip
    spatial = w.rank - 2
    single = x.rank == spatial + 1  # one sample, without a batch
    x = Tensor(x.node, ((), *x.dims)) if single else x
    attrs: dict[str, Any] = {
        "strides": _each(stride, spatial), "dilations": _each(dilation, spatial), "group": groups,
    }  # fmt: skip
    if isinstance(padding, str):
        attrs["auto_pad"] = {"valid": "VALID", "same": "SAME_UPPER"}[padding]
    else:
        attrs["pads"] = _each(padding, spatial) * 2
    y = c.onnx("Conv", x, w, bias, **attrs)[0]
    return Tensor(y.node, y.dims[1:]) if single else y


def _conv_transpose(
    c: Aten, x: Tensor, w: Tensor, bias: Tensor | None = None, stride: Ints = (1,),
    padding: Ints = (0,), more: Ints = (0,), groups: int = 1, dilation: Ints = (1,),
) -> Tensor:  # fmt: skip
    spatial = w.rank - 2
    if x.rank != w.rank:
        raise Unsupported("of one sample without a batch")
    return c.onnx(
        "ConvTranspose", x, w, bias, strides=_each(stride, spatial),
        pads=_each(padding, spatial) * 2, dilations=_each(dilation, spatial), group=groups,
        output_padding=_each(more, spatial),
    )[0]  # fmt: skip


def _convolution(
    c: Aten, x: Tensor, w: Tensor, bias: Tensor | None, stride: Ints, padding: Ints,
    dilation: Ints, transposed: bool, more: Ints, groups: int,
) -> Tensor:  # fmt: skip
    if transposed:
        return _conv_transpose(c, x, w, bias, stride, padding, more, groups, dilation)
    return _conv(c, x, w, bias, stride, padding, dilation, groups)


def _each(sizes: Ints | int, count: int) -> list[int]:
    """One number for each dimension; a single one stands for all."""
    given = [sizes] if isinstance(sizes, int) else list(sizes)
    return given * count if len(given) == 1 else given


# ---- pooling -----------------------------------------------------------------------------------


def _batched(c: Aten, x: Tensor, spatial: int) -> tuple[Tensor, bool]:
    single = x.rank == spatial + 1
    return (Tensor(x.node, ((), *x.dims)) if single else x), single


def _max_pool(spatial: int, places: bool) -> Callable[..., Any]:
    def build(
        c: Aten, x: Tensor, size: Ints, stride: Ints = (), padding: Ints = (0,),
        dilation: Ints = (1,), up: bool = False,
    ) -> Any:  # fmt: skip
        x, single = _batched(c, x, spatial)
        kernel = _each(size, spatial)
        made = c.onnx(
            "MaxPool", x, n_outputs=1, kernel_shape=kernel,
            strides=_each(stride, spatial) or kernel, pads=_each(padding, spatial) * 2,
            dilations=_each(dilation, spatial), ceil_mode=int(up),
        )[0]  # fmt: skip
        out = Tensor(made.node, made.dims[1:]) if single else made
        return (out, None) if places else out

    return build


def _avg_pool(spatial: int) -> Callable[..., Tensor]:
    def build(
        c: Aten, x: Tensor, size: Ints, stride: Ints = (), padding: Ints = (0,), up: bool = False,
        count_padding: bool = True, divisor: int | None = None,
    ) -> Tensor:  # fmt: skip
        if divisor is not None:
            raise Unsupported("with a divisor of its own")
        x, single = _batched(c, x, spatial)
        kernel = _each(size, spatial)
        y = c.onnx(
            "AveragePool", x, kernel_shape=kernel, strides=_each(stride, spatial) or kernel,
            pads=_each(padding, spatial) * 2, ceil_mode=int(up),
            count_include_pad=int(count_padding),
        )[0]  # fmt: skip
        return Tensor(y.node, y.dims[1:]) if single else y

    return build


def _adaptive_avg_pool(spatial: int) -> Callable[..., Tensor]:
    """Means of equal parts; where they can't be equal, it is refused."""

    def build(c: Aten, x: Tensor, size: Ints) -> Tensor:
        old, new = x.shape[-spatial:], c.shape[-spatial:]
        if any(o % n for o, n in zip(old, new)):
            raise Unsupported(f"of {list(old)} places to {list(new)}, which do not divide them")
        cut = [s for o, n in zip(old, new) for s in (n, o // n)]
        x = reshape(c.names, x, (*x.shape[:-spatial], *cut))
        lead = x.rank - 2 * spatial
        inner = x.dims[lead + 1 :: 2]
        node = mean_over(wide(x.node), axes_of(inner))
        return Tensor(cast(node, c.dtype), (*x.dims[:lead], *x.dims[lead::2]))

    return build


# ---- resizing ----------------------------------------------------------------------------------


def _resize(mode: str, spatial: int) -> Callable[..., Tensor]:
    """To the size of the result. Where factors are given, places are computed from them."""

    def build(c: Aten, x: Tensor, *args: Any) -> Tensor:
        corners = bool(args[1]) if mode != "nearest" and len(args) > 1 else False
        factors = args[-1] if len(args) > 1 else None
        given = factors if isinstance(factors, list) else None
        way = "align_corners" if corners else (
            "asymmetric" if mode == "nearest" else "half_pixel")  # fmt: skip
        if given is not None and any(
            int(f * o) != n or f != n / o for f, o, n in zip(given, x.shape[2:], c.shape[2:])
        ):
            raise Unsupported(f"by the factors {given}, which do not give its size exactly")
        sizes = np.array([*x.shape[:2], *c.shape[2:]])
        return c.onnx(
            "Resize", x, None, None, sizes, mode=mode, coordinate_transformation_mode=way,
            nearest_mode="floor",
        )[0]  # fmt: skip

    return build


_UPSAMPLES = (("nearest", "nearest1d", 1), ("nearest", "nearest2d", 2), ("nearest", "nearest3d", 3),
              ("linear", "linear1d", 1), ("linear", "bilinear2d", 2), ("linear", "trilinear3d", 3),
              ("cubic", "bicubic2d", 2))  # fmt: skip

ROWS: tuple[Row, ...] = (
    *(row(f"{name}.default", _matmul) for name in ("matmul", "mm", "bmm", "mv", "dot", "vdot")),
    *(row(f"{name}.default", _plus_product) for name in ("addmm", "baddbmm", "addmv")),
    row("linear.default", _linear),
    row("outer.default", _outer),
    row("einsum.default", _einsum),
    row("scaled_dot_product_attention.default", _sdpa),
    row("convolution.default", _convolution),
    *(row(f"conv{n}d.{kind}", _conv) for n in (1, 2, 3) for kind in ("default", "padding")),
    row("conv_transpose1d.default", _conv_transpose),
    row("conv_transpose2d.input", _conv_transpose),
    row("conv_transpose3d.input", _conv_transpose),
    *(row(f"max_pool{n}d.default", _max_pool(n, False)) for n in (1, 2, 3)),
    *(row(f"max_pool{n}d_with_indices.default", _max_pool(n, True)) for n in (1, 2, 3)),
    *(row(f"avg_pool{n}d.default", _avg_pool(n)) for n in (1, 2, 3)),
    *(row(f"{prefix}adaptive_avg_pool{n}d.default", _adaptive_avg_pool(n))
      for prefix in ("", "_") for n in (1, 2, 3)),
    *(row(f"upsample_{name}.{kind}", _resize(mode, n))
      for mode, name, n in _UPSAMPLES for kind in ("default", "vec")),
)  # fmt: skip
