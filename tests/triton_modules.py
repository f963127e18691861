"""Triton modules written by hand, as an emitter would hand them over; and ones that go wrong."""

from __future__ import annotations

from math import prod

from autosched.codegen.triton_spec import Launch, Tensor, TritonModule

HEAD = '"""Written by hand."""\n\nimport triton\nimport triton.language as tl\n'

GEMM = '''

@triton.jit
def product(x, w, y):
    """y[m, n] = sum(k, x[m, k] * w[k, n])"""
    at = tl.program_id(0)
    m = at // tl.cdiv({n}, {bn}) * {bm} + tl.arange(0, {bm})
    n = at % tl.cdiv({n}, {bn}) * {bn} + tl.arange(0, {bn})
    acc = tl.zeros(({bm}, {bn}), tl.float32)
    for k0 in range(0, {k}, {bk}):
        k = k0 + tl.arange(0, {bk})
        inside_x = (m[:, None] < {m}) & (k[None, :] < {k})
        inside_w = (k[:, None] < {k}) & (n[None, :] < {n})
        a = tl.load(x + m[:, None] * {k} + k[None, :], mask=inside_x, other=0.0)
        b = tl.load(w + k[:, None] * {n} + n[None, :], mask=inside_w, other=0.0)
        acc = tl.dot(a, b, acc, input_precision="{precision}")
    tl.store(y + m[:, None] * {n} + n[None, :], acc.to({dtype}),
             mask=(m[:, None] < {m}) & (n[None, :] < {n}))
'''

SOFTMAX = '''

@triton.jit
def weights(x, y):
    """y[t, c] = exp(x - max(c, x)) / sum(c, exp(x - max(c, x))), rows shared out"""
    c = tl.arange(0, {block})
    for t in range(tl.program_id(0), {t}, tl.num_programs(0)):
        row = tl.load(x + t * {c} + c, mask=c < {c}, other=-float("inf"))
        p = tl.exp(row - tl.max(row, 0))
        tl.store(y + t * {c} + c, p / tl.sum(p, 0), mask=c < {c})
'''

SPLIT = '''

@triton.jit
def parts(x, s):
    t = tl.program_id(0)
    c = tl.arange(0, {block})
    tl.store(s + t, tl.sum(tl.load(x + t * {c} + c, mask=c < {c}, other=0.0), 0))


@triton.jit
def shares(x, s, y):
    t = tl.program_id(0)
    c = tl.arange(0, {block})
    tl.store(y + t * {c} + c, tl.load(x + t * {c} + c, mask=c < {c}) / tl.load(s + t), mask=c < {c})
'''

COPY = '''

@triton.jit
def copy(x, y):
    """y = x, through tensor descriptors made in the kernel"""
    a = tl.make_tensor_descriptor(x, shape=[{t}, {c}], strides=[{c}, 1], block_shape=[16, 32])
    b = tl.make_tensor_descriptor(y, shape=[{t}, {c}], strides=[{c}, 1], block_shape=[16, 32])
    at = tl.program_id(0)
    b.store([at * 16, 0], a.load([at * 16, 0]))
'''

ONE = '''

@triton.jit
def one(x, y):
{body}
'''
_FAULTS = {
    "unknown": "    tl.store(y, tl.no_such_thing(x))",
    "type": "    tl.store(y, tl.dot(tl.load(x), tl.load(x)))",
    "shared": "    a = tl.arange(0, 512)\n"
              "    z = tl.load(x + a[:, None] * 512 + a[None, :]).to(tl.float16)\n"
              "    tl.store(y + a[:, None] * 512 + a[None, :], tl.dot(z, z))",
    # Writes a gigabyte away from its output, if it ever runs.
    "illegal": "    tl.store(y + (tl.program_id(0).to(tl.int64) + 1) * (1 << 38), tl.load(x))",
    "lazy": "    tl.store(y + tl.program_id(0), tl.load(x + tl.program_id(0)))",
    "strays": "    tl.store(y + tl.program_id(0), tl.load(x + tl.program_id(0)))\n"
              "    tl.store(x + tl.num_programs(0) - 1, float('nan'))",
}  # fmt: skip


def tensors(**shapes: tuple[str, str, tuple[int, ...]]) -> tuple[Tensor, ...]:
    """name=(role, dtype, extents)"""
    return tuple(Tensor(n, dtype, extents, role) for n, (role, dtype, extents) in shapes.items())


def gemm(
    m: int, n: int, k: int, *, bm: int = 32, bn: int = 32, bk: int = 16, warps: int = 4,
    stages: int = 2, dtype: str = "float32", precision: str = "ieee",
) -> TritonModule:  # fmt: skip
    names = {"m": m, "n": n, "k": k, "bm": bm, "bn": bn, "bk": bk, "precision": precision,
             "dtype": f"tl.{dtype}"}  # fmt: skip
    made = tensors(x=("input", dtype, (m, k)), w=("weight", dtype, (k, n)),
                   y=("output", dtype, (m, n)))  # fmt: skip
    launch = Launch("product", ("x", "w", "y"), -(-m // bm) * -(-n // bn), warps, stages)
    return TritonModule(HEAD + GEMM.format(**names), made, (launch,))


def softmax(t: int, c: int, warps: int = 4, persistent: int = 1) -> TritonModule:
    names = {"t": t, "c": c, "block": 1 << (c - 1).bit_length()}
    made = tensors(x=("input", "float32", (t, c)), y=("output", "float32", (t, c)))
    launch = Launch("weights", ("x", "y"), t, warps, 1, persistent)
    return TritonModule(HEAD + SOFTMAX.format(**names), made, (launch,))


def shares(t: int, c: int) -> TritonModule:
    """Two launches with scratch between them."""
    names = {"t": t, "c": c, "block": 1 << (c - 1).bit_length()}
    made = tensors(x=("input", "float32", (t, c)), s=("scratch", "float32", (t,)),
                   y=("output", "float32", (t, c)))  # fmt: skip
    launches = (Launch("parts", ("x", "s"), t, 1, 1), Launch("shares", ("x", "s", "y"), t, 1, 1))
    return TritonModule(HEAD + SPLIT.format(**names), made, launches)


def copy(t: int, c: int = 32) -> TritonModule:
    made = tensors(x=("input", "float32", (t, c)), y=("output", "float32", (t, c)))
    launch = Launch("copy", ("x", "y"), t // 16, 4, 1, descriptors=True)
    return TritonModule(HEAD + COPY.format(t=t, c=c), made, (launch,))


def fault(name: str, extents: tuple[int, ...] = (512, 512)) -> TritonModule:
    """A module that goes wrong in the compiler or on the device. "lazy" writes all but one;
    "strays" is right, and writes to its input afterwards."""
    made = tensors(x=("input", "float32", extents), y=("output", "float32", extents))
    source = HEAD + ONE.format(body=_FAULTS[name])
    programs = prod(extents) - (name == "lazy") if name in ("lazy", "strays") else 1
    return TritonModule(source, made, (Launch("one", ("x", "y"), programs, 4, 1),))
