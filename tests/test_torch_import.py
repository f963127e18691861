"""The importer of torch.export programs: every row and whole blocks against eager torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from onnx_models import maps_of, nodes_of, run_graph
from torch import nn
from torch.nn import functional as F

from autosched.ir.frontend.torch import import_module, to_array
from autosched.ir.graph import ModelError


def flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [t for item in items for t in flat(item)] if isinstance(items, Iterable) else []


class Function(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.function(*tensors)


# Relative error in L2 that rounding explains.
BOUNDS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def agrees(module: nn.Module, *inputs: torch.Tensor, islands: bool = False) -> Any:
    """Imports a module, compares its results with eager torch, and returns the import."""
    with torch.no_grad():
        found = import_module(module, inputs)
        want = flat(module(*inputs))
    names = [name for name, _ in zip((n.attr[0] for n in found.graph.inputs), inputs, strict=True)]
    feed = {n: to_array(x).astype(np.float64) if x.is_floating_point() else to_array(x)
            for n, x in zip(names, inputs)}  # fmt: skip
    got = run_graph(found.graph, feed)
    assert bool(found.graph.islands) == islands
    assert len(got) == len(want)
    for value, out, tensor in zip(found.graph.outputs, got.values(), want, strict=True):
        assert value.shape == tuple(tensor.shape)
        assert value.node.dtype == str(tensor.dtype).removeprefix("torch.")
        if not tensor.is_floating_point():
            np.testing.assert_array_equal(out, tensor.numpy())
            continue
        exact = tensor.double().numpy()
        assert np.array_equal(np.isnan(out), np.isnan(exact))
        assert np.array_equal(np.isinf(out), np.isinf(exact))
        finite = np.isfinite(exact)
        norm = np.linalg.norm(exact[finite]) or 1.0
        off = np.linalg.norm(np.asarray(out, np.float64)[finite] - exact[finite]) / norm
        assert off <= BOUNDS[tensor.dtype], f"{value.name}: {off:.1e}"
    return found


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def whole(*shape: int, below: int = 7, seed: int = 0, dtype: torch.dtype = torch.int64) -> Any:
    made = torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))
    return made.to(dtype)


X, Y, P = numbers(3, 4), numbers(3, 4, seed=1), numbers(3, 4).abs() + 0.1
ROW, CUBE, IMAGE = numbers(4, seed=2), numbers(2, 3, 4), numbers(2, 3, 8, 6)
I, J = whole(3, 4), whole(3, 4, below=5, seed=1) + 1
FLAGS = numbers(3, 4, seed=3) > 0
HALF, BRAIN = X.half(), X.bfloat16()


def _wrote(x: torch.Tensor) -> torch.Tensor:
    y = x.clone()
    y[:, 1] = 0
    y[0, 1:3] += 2
    y[::2, 0] = x[::2, 3]
    return y.mul_(2).relu_()


Case = tuple[str, Callable[..., Any], tuple[torch.Tensor, ...]]


def each(library: Any, x: torch.Tensor, *names: str) -> Case:
    """One case of many functions of one tensor."""
    return (f"{names[0]} to {names[-1]}",
            lambda y: tuple(getattr(library, name)(y) for name in names), (x,))  # fmt: skip


# One tuple a case: name, function, operands. Each stands for the rows that its name says.
UNARY: list[Case] = [
    each(torch, X, "neg", "abs", "exp", "exp2", "expm1", "erf", "erfc", "tanh", "sin", "cos"),
    each(torch, X, "atan", "sinh", "cosh", "asinh", "sigmoid", "square", "relu", "reciprocal",
         "deg2rad", "rad2deg"),
    each(torch, X, "floor", "ceil", "round", "trunc", "frac", "sign", "isnan", "isinf",
         "isfinite", "isposinf", "isneginf", "logical_not"),
    each(torch, P, "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "acosh"),
    each(torch, X.clamp(-0.9, 0.9), "asin", "acos", "atanh", "tan"),
    each(F, X, "silu", "gelu", "mish", "logsigmoid", "elu", "celu", "selu", "leaky_relu",
         "hardswish"),
    each(F, X, "hardsigmoid", "hardtanh", "relu6", "softplus", "softshrink", "hardshrink",
         "softsign", "tanhshrink", "glu"),
    each(torch, torch.tensor([math.nan, math.inf, -math.inf, 0.0]), "exp", "relu", "isnan",
         "isinf", "isfinite", "isposinf", "sign", "abs"),
    each(torch, whole(3, 4) - 3, "neg", "abs", "sign", "floor", "round", "sqrt", "isnan",
         "relu", "square", "bitwise_not"),
]  # fmt: skip
ELEMENTWISE: list[Case] = [
    ("gelu of tanh", lambda x: F.gelu(x, approximate="tanh"), (X,)),
    ("parameters", lambda x: F.elu(x, 0.5) + F.leaky_relu(x, 0.2) + F.threshold(x, 0.1, 3.0)
        + F.softplus(x, 2, 0.5) + F.celu(x, 0.7) + F.hardtanh(x, -0.5, 0.3), (X,)),
    ("prelu", lambda x, w: F.prelu(x, w), (CUBE, ROW[:3])),
    ("add", lambda x, y: torch.add(x, y, alpha=0.5) - torch.sub(x, 2, alpha=3), (X, Y)),
    ("reversed", lambda x: 2 - x + 3 / (x * x + 1), (X,)),
    ("division", lambda x, y: (x / y, torch.div(x, y, rounding_mode="floor"),
        torch.div(x, y, rounding_mode="trunc"), x // y), (X, Y)),
    ("whole division", lambda i, j: (i / j, i // j, torch.div(i, j, rounding_mode="trunc"),
        i % j, torch.fmod(i, j)), (I - 3, J)),
    ("remainders", lambda x, y: (torch.remainder(x, 0.7), torch.fmod(x, y), x % y), (X, Y)),
    ("powers", lambda x: (x**2, x**3, x.abs()**0.5, x.abs()**1.7, 2.0**x, x**x.abs()), (P,)),
    ("whole powers", lambda i: (i**2, i**3), (I,)),
    ("comparisons", lambda x, y: (x < y, x <= 0.1, x > y, x >= y, x == x, x != y), (X, Y)),
    ("mixed comparisons", lambda i, x: (i < x, i == 2, i > 1.5, x.half() < x), (I, X)),
    ("bits", lambda i, j: (i & j, i | 1, i ^ j, ~i, i << 2, i >> j), (I, J)),
    ("flags", lambda m, x: (m & (x > 0), m | (x > 0), m ^ (x > 0), ~m, m * (x > 0)), (FLAGS, X)),
    ("logic", lambda x, i: (torch.logical_and(x, i), torch.logical_or(x, i),
        torch.logical_xor(x, i)), (X, I)),
    ("clamp", lambda x, y: (x.clamp(-0.5, 0.5), x.clamp(min=0.1), x.clamp_max(0.2),
        x.clamp(y - 1, y + 1)), (X, Y)),
    ("extremes", lambda x, y: (torch.maximum(x, y), torch.minimum(x, y), torch.max(x, y)), (X, Y)),
    ("where", lambda m, x, y: (torch.where(m, x, y), torch.where(m, x, 0.0),
        torch.where(m, 1, 0)), (FLAGS, X, Y)),
    ("masked_fill", lambda x, m: (x.masked_fill(m, -math.inf), x.masked_fill(~m, x.max())),
        (X, FLAGS)),
    ("combined", lambda x, y, z: (torch.addcmul(x, y, z, value=0.5),
        torch.addcdiv(x, y, z.abs() + 1, value=2), torch.lerp(x, y, 0.3), torch.lerp(x, y, z),
        torch.hypot(x, y)), (X, Y, P)),
    ("promotion", lambda x, i, m: (x + i, x * m, i + m, i * 2.5, i.to(torch.int32) + i, i / 2,
        x.half() + x, x.half() * torch.tensor(2.0)), (X, I, FLAGS)),
    ("casts", lambda x: (x.int(), x.long() + 1, x.bool(), x.half(), x.double(), x.bfloat16()),
        (X * 3,)),
    ("half", lambda x: (x * 0.1 + 0.3, F.silu(x) / 3, x.exp().softmax(-1), x.sum(-1)), (HALF,)),
    ("bfloat16", lambda x: (x * 0.1 + 0.3, F.gelu(x), x.cumsum(0), x.mean()), (BRAIN,)),
    ("double", lambda x: (F.gelu(x), F.layer_norm(x, (4,)), x.logsumexp(0)), (X.double(),)),
    ("in place", _wrote, (X,)),
    ("broadcast", lambda x, r: x * r + r[:3, None] - 1, (CUBE[:, :, :1], ROW)),
]  # fmt: skip
MOVEMENT: list[Case] = [
    ("views", lambda x: (x.view(6, 4), x.reshape(2, -1), x.flatten(1), x.unflatten(2, (2, 2)),
        x[None].squeeze(0), x.unsqueeze(-1)), (CUBE,)),
    ("permute", lambda x: (x.permute(2, 0, 1), x.transpose(0, -1), x.mT, x.movedim(0, -1),
        x.permute(1, 2, 0).reshape(3, 8)), (CUBE,)),
    ("t", lambda x: x.t() + x.T, (X,)),
    ("expand", lambda r: (r.expand(3, 4), r[:, None].expand(-1, 5), r.broadcast_to(2, 3, 4)),
        (ROW,)),
    ("slices", lambda x: (x[1:], x[:, -2:], x[..., ::2], x[0], x[:, 1, 1:3], x[-1:, :0],
        x.narrow(2, 1, 2), x.select(1, -1)), (CUBE,)),
    ("splits", lambda x: (*x.split(3, -1), *x.chunk(2, -1), *x.split((1, 2, 1), -1),
        *x.unbind(0), *torch.tensor_split(x, 3, 2)), (CUBE,)),
    ("cat", lambda x, y: (torch.cat((x, y, x)), torch.cat((x, y[:, :1]), -1),
        torch.stack((x, y), 1), torch.cat((x, x.long()), 0), torch.hstack((x, y))), (X, Y)),
    ("repeat", lambda x: (x.repeat(2, 1), x.repeat(3, 1, 2), torch.tile(x, (2, 2)),
        x.repeat_interleave(3, 0), x.repeat_interleave(2)), (X,)),
    ("flip", lambda x: (x.flip(0, 1), x.roll(1, 0), x.roll((1, -2), (0, 1)), x.roll(5)), (X,)),
    ("unfold", lambda x: (x.unfold(1, 3, 1), x.unfold(0, 2, 1)), (X,)),
    ("diagonal", lambda x: (x.diagonal(), x.diagonal(1), x.diagonal(-1), x[:, :3].trace()), (X,)),
    ("pad", lambda x: (F.pad(x, (1, 2)), F.pad(x, (0, 1, 2, -1), value=1.5)), (X,)),
    ("pad otherwise", lambda x: (F.pad(x, (2, 1), mode="reflect"),
        F.pad(x, (1, 2), mode="replicate"), F.pad(x, (1, 1), mode="circular")), (CUBE,)),
    ("gather", lambda x, i: (x.gather(1, i % 4), x.gather(0, i[:1] % 3),
        torch.take_along_dim(x, i % 4, 1)), (X, I)),
    ("index", lambda x, i: (x[i[0] % 3], x[:, i[:, :2] % 4], x[i[0] % 3, i[1] % 4],
        x.index_select(1, i[2] % 4)), (X, I)),
    ("index apart", lambda x, i: (x[i[0] % 2, :, i[1] % 4], x[:, i[0] % 3, i[1] % 4],
        x[i[:, :1] % 2, None, i[0]  % 3]), (CUBE, I)),
    ("constant index", lambda x: (x[[2, 0]], x[:, [0, -1]]), (X,)),
    ("embedding", lambda i, w: F.embedding(i, w), (I, numbers(7, 5))),
    ("one_hot", lambda i: F.one_hot(i, 7), (I,)),
    ("triangles", lambda x: (x.tril(), x.triu(1), x.tril(-1)), (X,)),
    ("made", lambda x: (torch.zeros_like(x) + torch.ones(4), torch.full_like(x, 2.5),
        x.new_full((2, 2), 3), torch.arange(4) * 2, torch.arange(1.0, 3.0, 0.5) + x[0],
        torch.linspace(0, 1, 4) * x, torch.eye(4)[:3] * x, torch.full((2,), 7)), (X,)),
    ("constants", lambda x: (torch.tensor([1, 2, 3]), x + torch.tensor(2.0)), (X,)),
    ("pixels", lambda x: (F.pixel_shuffle(x.view(2, 12, 2, 6), 2), F.pixel_unshuffle(x, 2)),
        (IMAGE,)),
    ("scatter of slices", lambda x, y: (x.slice_scatter(y[:, :2], 1, 1, 3),
        x.slice_scatter(y[:, :2], 1, 0, 4, 2), x.select_scatter(y[0], 0, -1)), (X, Y)),
    ("same twice", lambda x: (x, x, x.view(4, 3)), (X,)),
]  # fmt: skip
REDUCTIONS: list[Case] = [
    ("sums", lambda x: (x.sum(), x.sum(1), x.sum((0, 2), keepdim=True), x.mean(-1),
        x.mean((0, 1)), x.sum(-1, dtype=torch.float64)), (CUBE,)),
    ("whole sums", lambda i, m: (i.sum(), i.sum(0), m.sum(), m.sum(1), i.prod(0),
        i.cumsum(1), m.cumsum(0)), (I, FLAGS)),
    ("extremes", lambda x: (x.amax(1), x.amin((0, 1)), x.max(), x.min(), *x.max(1),
        *x.min(-1, keepdim=True), x.argmax(), x.argmin(1), x.argmax(0, keepdim=True)), (CUBE,)),
    ("truth", lambda m, x: (m.any(), m.all(1), (x > 9).any(0), x.any(1), m.all()), (FLAGS, X)),
    ("moments", lambda x: (x.var(1), x.std(), x.var(0, correction=0), *torch.var_mean(x, 2)),
        (CUBE,)),
    ("norms", lambda x: (x.norm(), x.norm(dim=1), x.norm(1, -1), torch.linalg.vector_norm(
        x, math.inf), torch.linalg.vector_norm(x, 3, 1), F.normalize(x, dim=1)), (CUBE,)),
    ("products", lambda x: (x.prod(), x.prod(1), x.cumprod(0), x.logsumexp(1),
        x.count_nonzero()), (X,)),
    ("cumsum", lambda x: (x.cumsum(0), x.cumsum(-1)), (X,)),
    ("softmax", lambda x: (x.softmax(-1), x.softmax(0), x.log_softmax(1),
        x.half().softmax(-1, dtype=torch.float32)), (X,)),
    ("layer_norm", lambda x, w: (F.layer_norm(x, (4,)), F.layer_norm(x, (3, 4)),
        F.layer_norm(x, (4,), w, w + 1, 1e-3)), (CUBE, ROW)),
    ("rms_norm", lambda x, w: (F.rms_norm(x, (4,)), F.rms_norm(x, (4,), w, 1e-2)), (CUBE, ROW)),
    ("group_norm", lambda x: F.group_norm(x.view(2, 6, 4, 6), 3), (IMAGE,)),
    ("instance_norm", lambda x: F.instance_norm(x), (IMAGE,)),
    ("cosine", lambda x, y: F.cosine_similarity(x, y), (X, Y)),
    ("losses", lambda x, y: (F.mse_loss(x, y), F.l1_loss(x, y), F.smooth_l1_loss(x, y)), (X, Y)),
]  # fmt: skip
Q, K, V = numbers(2, 4, 5, 8), numbers(2, 4, 7, 8, seed=1), numbers(2, 4, 7, 6, seed=2)
BLOCKS: list[Case] = [
    ("matmul", lambda x, y, c: (x @ y.T, x.T.mm(y), c @ c.mT, c @ y[0], y[0] @ c.mT,
        torch.bmm(c, c.mT), y[0].dot(x[1]), x.mv(y[0]), c @ y.T, c[None] @ c.mT), (X, Y, CUBE)),
    ("addmm", lambda x, y, b: (torch.addmm(b[:3], x, y.T), torch.addmm(b[:3], x, y.T, beta=0.5,
        alpha=2), torch.baddbmm(x[None, :3, :3], x[None], y.mT[None])), (X, Y, ROW)),
    ("linear", lambda x, w, b: (F.linear(x, w), F.linear(x, w, b[:3]), F.linear(x, w[0])),
        (CUBE, Y, ROW)),
    ("einsum", lambda x, y: (torch.einsum("ij,kj->ik", x, y), torch.einsum("ij,ij->i", x, y),
        torch.einsum("i...,j...->...ij", x, y), torch.outer(x[0], y[1])), (X, Y)),
    ("tensordot", lambda x, c: (torch.tensordot(x, c, dims=([1], [2])), torch.kron(x, x)),
        (X, CUBE)),
    ("sdpa", lambda q, k, v: (F.scaled_dot_product_attention(q, k, v),
        F.scaled_dot_product_attention(q, k, v, scale=0.3)), (Q, K, V)),
    ("causal sdpa", lambda q, k, v: (F.scaled_dot_product_attention(q, k, v, is_causal=True),
        F.scaled_dot_product_attention(q[0], k[0], v[0], is_causal=True)), (Q, K, V)),
    ("masked sdpa", lambda q, k, v, m: (F.scaled_dot_product_attention(q, k, v, m > 0),
        F.scaled_dot_product_attention(q, k, v, m), F.scaled_dot_product_attention(
            q[None], k[None], v[None], m[None])), (Q, K, V, numbers(2, 1, 5, 7))),
    ("grouped sdpa", lambda q, k, v: F.scaled_dot_product_attention(
        q, k[:, :2], v[:, :2], enable_gqa=True), (Q, K, V)),
    ("rows masked whole", lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, m),
        (Q, K, V, torch.zeros(5, 7, dtype=torch.bool))),
    ("half sdpa", lambda q, k, v: F.scaled_dot_product_attention(q, k, v), (
        Q.bfloat16(), K.bfloat16(), V.bfloat16())),
    ("conv", lambda x, w: (F.conv2d(x, w), F.conv2d(x, w, stride=2, padding=1),
        F.conv2d(x, w, dilation=(2, 1), padding="same"), F.conv2d(x[0], w, padding="valid")),
        (IMAGE, numbers(4, 3, 3, 3, seed=1))),
    ("conv1d", lambda x, w: F.conv1d(x, w, padding=2, groups=3), (CUBE, numbers(6, 1, 3))),
    ("conv back", lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1),
        (IMAGE, numbers(3, 2, 3, 3))),
    ("pools", lambda x: (F.max_pool2d(x, 2), F.avg_pool2d(x, 3, 2, 1), F.max_pool2d(x, 3, 1, 1),
        F.avg_pool2d(x, 2, count_include_pad=False), F.adaptive_avg_pool2d(x, 1),
        F.adaptive_avg_pool2d(x, (4, 3)), F.avg_pool1d(x[0], 2)), (IMAGE,)),
    ("resizes", lambda x: (F.interpolate(x, scale_factor=2), F.interpolate(x, size=(5, 9)),
        F.interpolate(x, size=(4, 12), mode="bilinear"),
        F.interpolate(x, size=(5, 7), mode="bilinear", align_corners=True)), (IMAGE,)),
]  # fmt: skip
CASES = [*UNARY, *ELEMENTWISE, *MOVEMENT, *REDUCTIONS, *BLOCKS]
TOGETHER = 9  # cases of one module: an export takes longer than what it exports


class Cases(nn.Module):
    """Several cases as one module; results are called as the case and a number."""

    def __init__(self, cases: list[Case]) -> None:
        super().__init__()
        self.cases = cases

    def forward(self, *operands: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        rest = iter(operands)
        return {name: flat(function(*(next(rest) for _ in inputs)))
                for name, function, inputs in self.cases}  # fmt: skip


@pytest.mark.parametrize("first", range(0, len(CASES), TOGETHER))
def test_rows_agree_with_eager(first: int) -> None:
    cases = CASES[first : first + TOGETHER]
    agrees(Cases(cases), *(x for _, _, inputs in cases for x in inputs))


# ---- whole blocks ------------------------------------------------------------------------------


class Norm(nn.Module):
    """x over its root mean square, written out as model files have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


class Decoder(nn.Module):
    """A block as Llama has it: RMS norm, rotary positions, grouped heads, gated MLP."""

    def __init__(self, width: int = 32, heads: int = 4, kv_heads: int = 2) -> None:
        super().__init__()
        self.heads, self.kv_heads, size = heads, kv_heads, width // heads
        self.first, self.second = Norm(width), Norm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, kv_heads * size, bias=False)
        self.value = nn.Linear(width, kv_heads * size, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * width, width, bias=False)
        self.register_buffer("frequencies", 1e4 ** -(torch.arange(0, size, 2) / size))

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], -1, x.shape[-1] // self.count(x)).transpose(1, 2)

    def count(self, x: torch.Tensor) -> int:
        return x.shape[-1] * self.heads // self.query.in_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            angles = torch.arange(x.shape[1])[:, None].float() * self.frequencies.float()
            angles = torch.cat((angles, angles), -1)
            cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        y = self.first(x)
        q, k, v = (self.split(f(y)) for f in (self.query, self.key, self.value))
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(o.transpose(1, 2).reshape(x.shape))
        y = self.second(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Causal(nn.Module):
    """Blocks as GPT-2 has them, with the embedding as the last projection's weights too."""

    def __init__(self, width: int = 32, heads: int = 4, length: int = 6, words: int = 17) -> None:
        super().__init__()
        self.heads = heads
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(length, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.all_three, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU("tanh"), nn.Linear(64, width),
                                 nn.Dropout(0.1))  # fmt: skip
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        q, k, v = self.all_three(self.first(x)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(o.transpose(1, 2).flatten(2))
        x = x + self.mlp(self.second(x))
        return {"logits": self.head(x), "hidden": x}


class Patches(nn.Module):
    """The first layers of a ViT: patches, a class token, positions."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 5, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1)
        return self.norm(x + self.places)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def test_a_multilayer_perceptron() -> None:
    module = seeded(lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)))
    graph = agrees(module, numbers(5, 6)).graph
    assert set(graph.weights) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert graph.coverage.share == 1.0


@pytest.mark.parametrize("first", [False, True])
def test_an_encoder_layer(first: bool) -> None:
    module = seeded(lambda: nn.TransformerEncoderLayer(
        32, 4, 64, batch_first=True, norm_first=first, activation="gelu"))  # fmt: skip
    agrees(module, numbers(2, 5, 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gated_decoder_block(dtype: torch.dtype) -> None:
    module = seeded(Decoder).to(dtype)
    graph = agrees(module, numbers(2, 6, 32, dtype=dtype)).graph
    assert "le" in maps_of(graph)  # causal by coordinates, not by a table
    assert not {"floordiv", "mod"} & set(maps_of(graph))  # heads are grouped, never repeated


def test_a_causal_block_with_tied_weights() -> None:
    graph = agrees(seeded(Causal), whole(2, 6, below=17)).graph
    assert [v.name for v in graph.outputs] == ["logits", "hidden"]
    names = [n.attr[0] for n in nodes_of(graph, "input") if n.attr[3] == "weight"]
    assert len(names) == len(set(names))
    assert sum(w.shape == (17, 32) for w in graph.weights.values()) == 1


def test_running_statistics() -> None:
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU()))
    module[1].running_mean.normal_()
    agrees(module, IMAGE)
    agrees(Function(lambda x, m: F.batch_norm(x, m, m.abs() + 1)), IMAGE, ROW[:3])


def test_patches_of_an_image() -> None:
    agrees(seeded(Patches), numbers(2, 3, 8, 8))


def test_what_only_onnxruntime_sorts() -> None:
    """A router: the best experts by score run between kernels, and the sums behind them do not."""
    def route(x: torch.Tensor, w: torch.Tensor) -> Any:
        score, expert = torch.topk((x @ w).softmax(-1), 2)
        ordered, place = x.sort(-1, descending=True)
        spread = torch.zeros(3, 6).scatter_add(1, expert, score)
        return score / score.sum(-1, keepdim=True), expert, ordered, place, spread, x.argsort(-1)

    graph = agrees(Function(route), X, numbers(4, 6), islands=True).graph
    assert {op for island in graph.islands for op in island.op_types} == {
        "aten.topk.default", "aten.sort.default", "aten.scatter_add.default"}
    assert "in onnxruntime: aten.scatter_add.default x1" in graph.coverage.line()


def test_a_mask_made_of_coordinates_is_no_table() -> None:
    def masked(x: torch.Tensor) -> torch.Tensor:
        hidden = torch.full((6, 6), -math.inf).triu(1)
        return (x @ x.mT + hidden).softmax(-1)

    graph = agrees(Function(masked), numbers(2, 6, 4)).graph
    assert not graph.weights


# ---- how it is called --------------------------------------------------------------------------


def test_the_tree_of_a_call() -> None:
    class Nested(nn.Module):
        def forward(self, x: Any, both: Any, *, scale: float = 2.0, mask: Any = None) -> Any:
            return {"y": x * scale, "rest": [both[0] + both[1]["b"], None, (3, mask)]}

    one = torch.ones(2)
    found = import_module(Nested(), (one, (one, {"b": one})), {"mask": one, "scale": 2.0})
    assert found.call["parameters"] == ["x", "both"]
    assert found.call["args"][1] == {
        "tuple": [{"name": "both_0"}, {"dict": [["b", {"name": "both_1_b"}]]}]
    }
    assert found.call["kwargs"] == {"scale": {"value": 2.0}, "mask": {"name": "mask"}}
    assert found.call["result"] == {"dict": [["y", {"name": "y"}], ["rest", {"list": [
        {"name": "rest_0"}, {"value": None}, {"tuple": [{"value": 3}, {"name": "rest_2_1"}]},
    ]}]]}  # fmt: skip


def test_a_program_is_what_its_module_is() -> None:
    module, x = seeded(Decoder), numbers(2, 6, 32)
    program = torch.export.export(module, (x,), strict=False)
    imported = import_module(program)
    assert imported.digest == import_module(module, (x,)).digest
    with torch.no_grad():
        module.gate.weight[0, 0] += 1
    assert import_module(module, (x,)).digest != imported.digest
    free = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    with pytest.raises(ModelError, match="'x' of exported program has dimensions without a size"):
        import_module(free)
    assert import_module(free, (x,)).graph.inputs[0].axes[0][1] == 2


# ---- faults ------------------------------------------------------------------------------------


class Sorted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.qr(x)[0]


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


FAULTS: list[tuple[str, nn.Module, Any, str]] = [
    ("no inputs", nn.ReLU(), None, "ReLU needs example inputs, since kernels are tuned for shapes"),
    ("inputs of another kind", nn.ReLU(), {"x": X}, "must be a tuple of its arguments, not dict"),
    ("too many inputs", nn.ReLU(), (X, X), "the example inputs are not what its forward takes"),
    ("control flow", Function(lambda x: x if x.sum() > 0 else -x), (X,),
     "depends on the values of tensors"),
    ("sizes from data", Function(lambda x: x[x > 0]), (X,),
     "has a size that depends on the values of tensors"),
    ("dropout", nn.Sequential(nn.Dropout(0.5)), (X,), r"draws random numbers[^$]*module\.eval\(\)"),
    ("statistics", nn.BatchNorm1d(4), (X,), r"writes to .*in training mode call module\.eval\(\)"),
    ("a state", Counting(), (X,), "writes to 'calls' when it is called"),
    ("an operator", nn.Sequential(nn.ReLU(), Sorted()), (X,),
     r"aten\.linalg_qr\.default in 1 \(test_torch_import\.py:\d+: `return torch\.linalg\.qr"),
    ("a type", Function(lambda x: x.to(torch.complex64).abs()), (X,), "torch.complex64"),
    ("no module", lambda x: x, (X,), "not function"),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=[name for name, *_ in FAULTS])
def test_faults_are_one_screen(
    fault: tuple[str, Any, Any, str], capfd: pytest.CaptureFixture[str]
) -> None:
    _, module, inputs, message = fault
    with pytest.raises(ModelError, match=message) as caught:
        import_module(module, inputs)
    assert len(str(caught.value).splitlines()) <= 14
    assert not "".join(capfd.readouterr())
