"""The array module of the interpreter on torch: the meaning of a program, evaluated on a GPU.

`evaluate(program, tensors, TorchArrays("cuda"))` yields float64 tensors on that device, so that a
kernel's answer is checked at its real size and never leaves the device. Methods and semantics are
those of `ir.arrays.NumpyArrays`; `supports` says which programs can be evaluated so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from autosched.codegen.torch_gather import align, contract, gather
from autosched.codegen.torch_types import GRIDS, KINDS, STORAGE, power_of_two
from autosched.ir.arrays import Named
from autosched.ir.gather import Dim, joint
from autosched.ir.monoid import MONOIDS, dtype_limit
from autosched.ir.node import Program, walk
from autosched.ir.scalar import FLOATS, ITEMSIZE, SCALARS, split_name

Tensor = torch.Tensor


def _sign(x: Tensor) -> Tensor:
    return torch.where(x == x, torch.sign(x), x)


def _divide(mode: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: torch.div(a, b, rounding_mode=mode)


# The meaning of the scalar functions, as in ir.scalar; what is not here is not evaluated on torch.
FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div,
    "floordiv": _divide("floor"), "truncdiv": _divide("trunc"), "mod": torch.remainder,
    "fmod": torch.fmod, "max": torch.maximum, "min": torch.minimum, "pow": torch.pow,
    "neg": torch.neg, "abs": torch.abs, "sign": _sign, "floor": torch.floor, "ceil": torch.ceil,
    "round": torch.round, "exp": torch.exp, "exp2": torch.exp2, "log": torch.log,
    "log2": torch.log2, "log1p": torch.log1p, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt,
    "erf": torch.erf, "tanh": torch.tanh, "sin": torch.sin, "cos": torch.cos, "tan": torch.tan,
    "asin": torch.asin, "acos": torch.acos, "atan": torch.atan, "sinh": torch.sinh,
    "cosh": torch.cosh, "asinh": torch.asinh, "acosh": torch.acosh, "atanh": torch.atanh,
    "isnan": torch.isnan, "isinf": torch.isinf, "lt": torch.lt, "le": torch.le, "gt": torch.gt,
    "ge": torch.ge, "eq": torch.eq, "ne": torch.ne, "and": torch.logical_and,
    "or": torch.logical_or, "xor": torch.logical_xor, "not": torch.logical_not,
    "bitand": torch.bitwise_and, "bitor": torch.bitwise_or, "bitxor": torch.bitwise_xor,
    "bitnot": torch.bitwise_not, "shl": torch.bitwise_left_shift,
    "shr": torch.bitwise_right_shift, "where": torch.where,
}  # fmt: skip
_REDUCERS: Mapping[str, Callable[..., Tensor]] = {
    "sum": torch.sum, "max": torch.amax, "min": torch.amin, "any": torch.any, "all": torch.all,
}  # fmt: skip
_SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def supports(program: Program) -> bool:
    """Whether torch computes in every type and function of the program."""
    for node in walk(*program.body):
        if any(t.dtype not in KINDS for t in node.types):
            return False
        if node.op == "map":
            name = split_name(node.attr[0])[0]
            if name not in FUNCTIONS and SCALARS[name].result not in ("param", "bits"):
                return False
    return True


class TorchArrays:
    """The methods that the interpreter needs, on tensors of one device."""

    def __init__(self, device: str = "cuda") -> None:
        self.device = torch.device(device)

    # ---- making ---------------------------------------------------------------------------

    def dtype(self, name: str) -> torch.dtype:
        return KINDS[name]

    def constant(self, value: float | bool, dtype: str) -> Named:
        return Named(torch.tensor(value, dtype=self.dtype(dtype), device=self.device))

    def arange(self, lo: int, hi: int, dim: Dim) -> Named:
        return Named(torch.arange(lo, hi, dtype=torch.int32, device=self.device), (dim,))

    def load(self, array: Any, dtype: str, rounding: bool) -> Tensor:
        raw = array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))
        return self._round(raw.to(self.device, self.dtype(dtype)), dtype, rounding)

    def memory(self, shape: tuple[int, ...], dtype: str) -> tuple[Tensor, Tensor]:
        kind = self.dtype(dtype)
        low: float = math.nan if kind.is_floating_point else 0
        if kind in _SIGNED.values():
            low = torch.iinfo(kind).min
        data = torch.full(shape, low, dtype=kind, device=self.device)
        return data, torch.zeros(shape, dtype=torch.bool, device=self.device)

    def copy(self, data: Tensor) -> Tensor:
        return data.clone(memory_format=torch.contiguous_format)

    def spread(self, x: Named, dims: tuple[Dim, ...], sizes: dict[Dim, int]) -> Named:
        shape = tuple(sizes[d] for d in dims)
        bad = None if x.bad is None else align(x.bad, x.dims, dims).expand(shape)
        return Named(align(x.data, x.dims, dims).expand(shape), dims, bad)

    # ---- elementwise ----------------------------------------------------------------------

    def apply(
        self, fn: str, dtype: str | None, operands: Sequence[Named], rounding: bool = False,
        source: str = "",
    ) -> Named:  # fmt: skip
        dims = joint(x.dims for x in operands)
        data = [align(x.data, x.dims, dims) for x in operands]
        name, target = split_name(fn)
        if SCALARS[name].result == "param":
            out = self.cast(data[0], target, rounding)
        elif SCALARS[name].result == "bits":
            out = self._reinterpret(data[0], source, target)
        else:
            out = FUNCTIONS[name](*data)
            out = out if dtype is None else out.to(self.dtype(dtype))
        if all(x.bad is None for x in operands):
            return Named(out, dims)
        no = torch.zeros((), dtype=torch.bool, device=self.device)
        bad = [no if x.bad is None else align(x.bad, x.dims, dims) for x in operands]
        if name == "where":
            mark = bad[0] | torch.where(data[0], bad[1], bad[2])
        else:
            mark = _any_of(bad)
        return self.marked(out, dims, mark)

    def marked(self, data: Tensor, dims: tuple[Dim, ...], bad: Any) -> Named:
        if isinstance(bad, bool):
            bad = torch.full((), bad, device=self.device)
        return Named(data, dims, bad.expand(data.shape) if bool(bad.any()) else None)

    def cast(self, data: Tensor, target: str, rounding: bool) -> Tensor:
        kind = self.dtype(target)
        if kind is torch.bool:
            return data != 0
        if not kind.is_floating_point and data.is_floating_point():
            return torch.trunc(data).to(torch.int64).to(kind)
        wide = target in ("float64", "float32") and not rounding
        return self._round(data.to(kind), target, not wide)

    def _round(self, data: Tensor, dtype: str, rounding: bool) -> Tensor:
        """Every element on the grid of `dtype`, ties to even."""
        if not rounding or dtype not in FLOATS:
            return data
        if dtype not in GRIDS:
            return data.to(STORAGE[dtype]).to(torch.float64)
        bits, least, greatest, beyond = GRIDS[dtype]
        finite = torch.isfinite(data)  # others have no exponent, on a GPU any at all
        _, exponent = torch.frexp(torch.where(finite, data, torch.zeros_like(data)))
        unit = torch.clamp(exponent - 1, min=least) - (bits - 1)
        scale = power_of_two(unit)
        y = torch.where(finite, torch.round(data / scale) * scale, data)
        return torch.where(y.abs() > greatest, torch.copysign(torch.full_like(y, beyond), y), y)

    def _reinterpret(self, data: Tensor, source: str, target: str) -> Tensor:
        stored = data
        if source in FLOATS:
            stored = self._round(data, source, True).to(STORAGE[source])
        bits = stored.contiguous().view(_SIGNED[ITEMSIZE[source]])
        return bits.view(STORAGE[target]).to(self.dtype(target))

    # ---- reductions -----------------------------------------------------------------------

    def reduce(
        self, monoid: str, dtypes: Sequence[str], operands: Sequence[Named], gone: tuple[Dim, ...]
    ) -> tuple[Named, ...]:
        dims, sizes = _common(operands)
        kept = tuple(d for d in dims if d not in gone)
        full = [self.spread(x, kept + gone, sizes) for x in operands]
        at = tuple(range(len(kept), len(dims)))
        bad = [x.bad.any(dim=at) if at else x.bad for x in full if x.bad is not None]
        mark = _any_of(bad) if bad else False
        spec, shape = MONOIDS[monoid], tuple(sizes[d] for d in kept)
        if not all(sizes[d] for d in gone):
            out = [self._filled(shape, i, t) for i, t in zip(spec.identity, dtypes)]
        elif monoid in _REDUCERS:
            out = [_REDUCERS[monoid](full[0].data, dim=at) if at else full[0].data]
        else:
            flat = tuple(x.data.reshape(*shape, -1) for x in full)
            out = [x[..., 0] for x in _tree(spec.combine, flat)]
        return tuple(
            self.marked(x.to(self.dtype(t)), kept, mark) for x, t in zip(out, dtypes)
        )  # fmt: skip

    def _filled(self, shape: tuple[int, ...], which: float | str, dtype: str) -> Tensor:
        limit = dtype_limit(which, dtype)
        return torch.full(shape, limit, dtype=self.dtype(dtype), device=self.device)

    def scan(
        self, monoid: str, dtypes: Sequence[str], operands: Sequence[Named], dim: Dim,
        exclusive: bool, reverse: bool,
    ) -> tuple[Named, ...]:  # fmt: skip
        spec = MONOIDS[monoid]
        dims, sizes = _common(operands)
        order = (*(d for d in dims if d != dim), dim)
        full = [self.spread(x, order, sizes) for x in operands]

        def turned(x: Tensor) -> Tensor:
            return x.flip(-1) if reverse else x

        data = tuple(turned(x.data) for x in full)
        n, step = sizes[dim], 1
        while step < n:  # every element then covers `step` elements up to itself
            later = spec.combine(
                _call, tuple(c[..., :-step] for c in data), tuple(c[..., step:] for c in data)
            )
            data = tuple(torch.cat([c[..., :step], x], -1) for c, x in zip(data, later))
            step *= 2
        bad = [turned(x.bad).to(torch.int64).cumsum(-1) > 0 for x in full if x.bad is not None]
        mark = _any_of(bad) if bad else None
        if exclusive:
            data = tuple(
                _shifted(c, dtype_limit(i, t)) for c, i, t in zip(data, spec.identity, dtypes)
            )
            mark = None if mark is None else _shifted(mark, False)
        return tuple(
            self.marked(turned(c).to(self.dtype(t)), order, False if mark is None else turned(mark))
            for c, t in zip(data, dtypes)
        )

    def contract(self, dtype: str, factors: Sequence[Named], gone: tuple[Dim, ...]) -> Named:
        data, dims = contract([(x.data, x.dims) for x in factors], gone)
        data = data.to(self.dtype(dtype))
        marks = [x for x in factors if x.bad is not None]
        if not marks:
            return Named(data, dims)
        mark = torch.zeros(data.shape, dtype=torch.bool, device=self.device)
        for x in marks:
            at = tuple(n for n, d in enumerate(x.dims) if d in gone)
            kept = tuple(d for d in x.dims if d not in gone)
            mark = mark | align(x.bad.any(dim=at) if at else x.bad, kept, dims)
        return self.marked(data, dims, mark)

    def trisolve(self, matrix: Named, rhs: Named, row: Dim, col: Dim) -> Named:
        _, sizes = _common((matrix, rhs))
        batch = tuple(d for d in joint((matrix.dims, rhs.dims)) if d not in (row, col))
        only = tuple(d for d in batch if d not in matrix.dims)
        shared = tuple(d for d in batch if d in matrix.dims)
        lower = align(matrix.data, matrix.dims, (*shared, row, col))
        full = self.spread(rhs, (*shared, row, *only), sizes)
        right = full.data.reshape(*full.data.shape[: len(shared) + 1], -1)
        x = torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)
        marks = [m for m in (matrix.bad, rhs.bad) if m is not None]
        return self.marked(x.reshape(full.data.shape), full.dims, bool(marks))

    # ---- memory ---------------------------------------------------------------------------

    def read(self, data: Tensor, index: Sequence[Named], known: Any = None) -> Named:
        bad: Named | None = None
        inside = []
        for size, x in zip(data.shape, index):
            if (out := self.outside(x, size)) is not None:
                bad = out if bad is None else self.apply("or", "bool", (bad, out))
                x = Named(x.data.clamp(0, max(size - 1, 0)), x.dims)
            inside.append((x.data, x.dims))
        if bad is not None and 0 in data.shape:
            data = data.new_zeros([max(n, 1) for n in data.shape])
            known = None
        values, dims = gather(data, inside)
        if known is not None and not known.all():
            stored, where = gather(known, inside)
            lost = Named(~align(stored, where, dims), dims)
            bad = lost if bad is None else self.apply("or", "bool", (bad, lost))
        if bad is None:
            return Named(values, dims)
        mark = align(bad.data, bad.dims, dims)
        if values.is_floating_point():
            values = torch.where(mark, torch.full_like(values, math.nan), values)
        return self.marked(values, dims, mark)

    def index(self, x: Named, index: dict[Dim, Named]) -> Named:
        at = [index.get(d) or self.arange(0, n, d) for d, n in zip(x.dims, x.data.shape)]
        return self.read(x.data, at, None if x.bad is None else ~x.bad)

    def pick(self, x: Named, dim: Dim, at: int) -> Named:
        if dim not in x.dims:
            return x
        n = x.dims.index(dim)
        bad = None if x.bad is None else x.bad.select(n, at)
        return Named(x.data.select(n, at), x.dims[:n] + x.dims[n + 1 :], bad)

    def stack(self, parts: Sequence[Named], dim: Dim) -> Named:
        dims, sizes = _common(parts)
        full = [self.spread(p, dims, sizes) for p in parts]
        data = torch.stack([p.data for p in full])
        if all(p.bad is None for p in full):
            return Named(data, (dim, *dims))
        return self.marked(data, (dim, *dims), torch.stack([_bad_of(p) for p in full]))

    def concatenate(self, parts: Sequence[Named], dim: Dim) -> Named:
        dims = parts[0].dims
        if dim not in dims:
            return parts[0]
        data = torch.cat([align(p.data, p.dims, dims) for p in parts], dims.index(dim))
        if all(p.bad is None for p in parts):
            return Named(data, dims)
        bad = [align(_bad_of(p), p.dims, dims) for p in parts]
        return Named(data, dims, torch.cat(bad, dims.index(dim)))

    def cut(self, x: Named, dim: Dim, lo: int, hi: int) -> Named:
        box = (slice(None),) * x.dims.index(dim) + (slice(lo, hi),)
        return Named(x.data[box], x.dims, None if x.bad is None else x.bad[box])

    def merge(
        self, monoid: str, dtypes: Sequence[str], a: Sequence[Named], b: Sequence[Named]
    ) -> tuple[Named, ...]:
        dims = a[0].dims
        left, right = (tuple(align(x.data, x.dims, dims) for x in xs) for xs in (a, b))
        out = MONOIDS[monoid].combine(_call, left, right)
        marks = [align(x.bad, x.dims, dims) for x in (*a, *b) if x.bad is not None]
        bad = _any_of(marks) if marks else False
        return tuple(self.marked(x.to(self.dtype(t)), dims, bad) for x, t in zip(out, dtypes))

    def choose(self, t: Named, lo: Named, hi: Named, inside: Named, outside: Named) -> Named:
        dims = joint((lo.dims, hi.dims))
        low, high = align(lo.data, lo.dims, dims), align(hi.data, hi.dims, dims)
        active = Named((low <= t.data) & (t.data < high), dims)
        return self.apply("where", None, [active, inside, outside], False)

    def any(self, x: Named) -> bool:
        return bool(x.data.any())

    def first(self, x: Tensor) -> tuple[tuple[int, ...], int]:
        where = torch.nonzero(x)
        return tuple(where[0].tolist()), len(where)

    def extremes(self, x: Named) -> tuple[int, int]:
        return int(x.data.min()), int(x.data.max())

    def outside(self, x: Named, size: int) -> Named | None:
        if not x.data.numel() or (x.data.min() >= 0 and x.data.max() < size):
            return None
        return Named((x.data < 0) | (x.data >= size), x.dims)

    def positions(self, at: Named, steps: Sequence[int]) -> Named:
        length = max([*steps, 0, *at.data.reshape(-1).tolist()]) + 1
        table = torch.full((length,), -1, dtype=torch.int64, device=self.device)
        table[list(steps)] = torch.arange(len(steps), device=self.device)
        return Named(table[at.data.long()], at.dims)

    def missing(self, like: Named, dtype: str) -> Named:
        data, _ = self.memory(tuple(like.data.shape), dtype)
        return self.marked(data, like.dims, True)

    def write(
        self, data: Tensor, known: Tensor, index: Sequence[Named], value: Named, mask: Named | None
    ) -> None:
        dims = joint([*(x.dims for x in index), () if mask is None else mask.dims])
        if extra := [d[0] for d in value.dims if d not in dims]:
            raise ValueError(f"the stored value varies along {extra}, the address does not")
        _, sizes = _common([*index, *(() if mask is None else (mask,))])
        full = self.spread(value, dims, sizes)
        keep = None if mask is None else self.spread(mask, dims, sizes).data

        def kept(x: Tensor) -> Tensor:
            return x if keep is None else x[keep]

        at = tuple(kept(self.spread(x, dims, sizes).data).long() for x in index)
        data[at] = kept(full.data)
        known[at] = True if full.bad is None else ~kept(full.bad)


def _call(fn: str, *operands: Tensor) -> Tensor:
    return FUNCTIONS[fn](*operands)


def _any_of(marks: Sequence[Tensor]) -> Tensor:
    out = marks[0]
    for mark in marks[1:]:
        out = out | mark
    return out


def _bad_of(x: Named) -> Tensor:
    return torch.zeros_like(x.data, dtype=torch.bool) if x.bad is None else x.bad


def _shifted(data: Tensor, first: float | bool) -> Tensor:
    """`data` one place later along the last dimension, `first` in front."""
    head = data.new_full((*data.shape[:-1], min(1, data.shape[-1])), first)
    return torch.cat([head, data[..., :-1]], -1)


def _tree(combine: Callable[..., Any], x: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Neighbours combined in pairs until one is left, in order."""
    while (n := x[0].shape[-1]) > 1:
        pairs = combine(
            _call, tuple(c[..., : n - n % 2 : 2] for c in x), tuple(c[..., 1::2] for c in x)
        )
        x = tuple(
            torch.cat([p, c[..., n - 1 :]], -1) if n % 2 else p for p, c in zip(pairs, x)
        )  # fmt: skip
    return x


def _common(operands: Sequence[Named]) -> tuple[tuple[Dim, ...], dict[Dim, int]]:
    sizes = {d: n for x in operands for d, n in zip(x.dims, x.data.shape)}
    return joint(x.dims for x in operands), sizes
