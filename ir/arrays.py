"""Arrays with named dimensions on NumPy: the array module behind the interpreter.

The interpreter touches arrays through these methods only, so that another array module (torch on
a GPU) is another class with the same methods. Floating values are float64, integers and booleans
have their own type. `bad` marks elements that have no value: read out of range or never written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from autosched.ir.contract import contract
from autosched.ir.gather import Dim, align, gather, joint, progression
from autosched.ir.monoid import MONOIDS, dtype_limit
from autosched.ir.scalar import FLOATS, SCALARS, reinterpret, round_to_grid, split_name


class Named(NamedTuple):
    """An array whose dimension n is called dims[n]; bad: bools of its shape, or None."""

    data: Any
    dims: tuple[Dim, ...] = ()
    bad: Any = None


class NumpyArrays:
    """The methods that the interpreter needs, on NumPy."""

    # ---- making ---------------------------------------------------------------------------

    def dtype(self, name: str) -> Any:
        """The type in which values of the IR type `name` are computed."""
        return np.dtype(np.float64 if name in FLOATS else name)

    def constant(self, value: float | bool, dtype: str) -> Named:
        return Named(np.asarray(value, self.dtype(dtype)))

    def arange(self, lo: int, hi: int, dim: Dim) -> Named:
        return Named(np.arange(lo, hi, dtype=np.int32), (dim,))

    def load(self, array: Any, dtype: str, rounding: bool) -> Any:
        """An argument in the type it is computed in."""
        raw = np.asarray(array)
        kind = self.dtype(dtype)
        return self._round(raw.astype(kind, copy=False), dtype, rounding)

    def memory(self, shape: tuple[int, ...], dtype: str) -> tuple[Any, Any]:
        """Data of a buffer, poisoned, and the bools that say which elements were stored."""
        kind = self.dtype(dtype)
        poison = np.nan if kind.kind == "f" else 0 if kind.kind in "bu" else np.iinfo(kind).min
        return np.full(shape, poison, kind), np.zeros(shape, bool)

    def copy(self, data: Any) -> Any:
        return data.copy()

    def spread(self, x: Named, dims: tuple[Dim, ...], sizes: dict[Dim, int]) -> Named:
        """x broadcast to `dims`, in that order."""
        shape = tuple(sizes[d] for d in dims)
        bad = None if x.bad is None else np.broadcast_to(align(x.bad, x.dims, dims), shape)
        return Named(np.broadcast_to(align(x.data, x.dims, dims), shape), dims, bad)

    # ---- elementwise ----------------------------------------------------------------------

    def apply(
        self,
        fn: str,
        dtype: str | None,
        operands: Sequence[Named],
        rounding: bool = False,
        source: str = "",
    ) -> Named:
        """The scalar function `fn` with a result of `dtype` (None: as it comes); `source` is the
        type of its last operand, which functions of bits need to know."""
        dims = joint(x.dims for x in operands)
        data = [align(x.data, x.dims, dims) for x in operands]
        name, target = split_name(fn)
        if SCALARS[name].result == "param":
            out = self.cast(data[0], target, rounding)
        elif SCALARS[name].result == "bits":
            out = reinterpret(data[0], source, target)
        else:
            out = np.asarray(SCALARS[name].numpy(*data))
            out = out if dtype is None else out.astype(self.dtype(dtype), copy=False)
        if all(x.bad is None for x in operands):
            return Named(out, dims)
        bad = [np.False_ if x.bad is None else align(x.bad, x.dims, dims) for x in operands]
        if name == "where":
            mark = bad[0] | np.where(data[0], bad[1], bad[2])
        else:
            mark = np.logical_or.reduce(np.broadcast_arrays(*bad))
        return self.marked(out, dims, mark)

    def marked(self, data: Any, dims: tuple[Dim, ...], bad: Any) -> Named:
        return Named(data, dims, np.broadcast_to(bad, data.shape) if np.any(bad) else None)

    def cast(self, data: Any, target: str, rounding: bool) -> Any:
        """To the grid of `target`; wide floats are left as they are unless rounding is asked."""
        kind = self.dtype(target)
        if kind.kind == "b":
            return data != 0
        with np.errstate(invalid="ignore", over="ignore"):
            if kind.kind in "iu" and data.dtype.kind == "f":
                return np.trunc(data).astype(kind)
            wide = target in ("float64", "float32") and not rounding
            return self._round(data.astype(kind, copy=False), target, not wide)

    def _round(self, data: Any, dtype: str, rounding: bool) -> Any:
        return round_to_grid(data, dtype) if rounding and dtype in FLOATS else data

    # ---- reductions -----------------------------------------------------------------------

    def reduce(
        self, monoid: str, dtypes: Sequence[str], operands: Sequence[Named], gone: tuple[Dim, ...]
    ) -> tuple[Named, ...]:
        """The monoid over the dimensions `gone`, all of which some operand has."""
        spec = MONOIDS[monoid]
        dims, sizes = self._common(operands)
        kept = tuple(d for d in dims if d not in gone)
        full = [self.spread(x, kept + gone, sizes) for x in operands]
        at = tuple(range(len(kept), len(dims)))
        bad = [np.any(x.bad, axis=at) for x in full if x.bad is not None]
        mark = np.logical_or.reduce(bad) if bad else None
        if not all(sizes[d] for d in gone):
            shape = tuple(sizes[d] for d in kept)
            out = [
                np.full(shape, dtype_limit(i, t), self.dtype(t))
                for i, t in zip(spec.identity, dtypes)
            ]
        elif spec.numpy is not None:
            out = [np.asarray(spec.numpy(full[0].data, axis=at))]
        else:
            flat = tuple(np.reshape(x.data, (*x.data.shape[: len(kept)], -1)) for x in full)
            out = [x[..., 0] for x in self._tree(spec.combine, flat)]
        return tuple(
            self.marked(x.astype(self.dtype(t), copy=False), kept, False if mark is None else mark)
            for x, t in zip(out, dtypes)
        )

    def _common(self, operands: Sequence[Named]) -> tuple[tuple[Dim, ...], dict[Dim, int]]:
        sizes = {d: n for x in operands for d, n in zip(x.dims, x.data.shape)}
        return joint(x.dims for x in operands), sizes

    def _tree(self, combine: Callable[..., Any], x: tuple[Any, ...]) -> tuple[Any, ...]:
        """Neighbours combined in pairs until one is left, in order."""
        while (n := x[0].shape[-1]) > 1:
            pairs = combine(
                _apply, tuple(c[..., : n - n % 2 : 2] for c in x), tuple(c[..., 1::2] for c in x)
            )
            x = tuple(
                np.concatenate([p, c[..., n - 1 :]], axis=-1) if n % 2 else p
                for p, c in zip(pairs, x)
            )
        return x

    def scan(
        self,
        monoid: str,
        dtypes: Sequence[str],
        operands: Sequence[Named],
        dim: Dim,
        exclusive: bool,
        reverse: bool,
    ) -> tuple[Named, ...]:
        """Prefix combinations along `dim` (suffix ones where reverse)."""
        spec = MONOIDS[monoid]
        dims, sizes = self._common(operands)
        order = (*(d for d in dims if d != dim), dim)
        full = [self.spread(x, order, sizes) for x in operands]
        flip = slice(None, None, -1 if reverse else 1)
        data = tuple(x.data[..., flip] for x in full)
        n = sizes[dim]
        step = 1
        while step < n:  # every element then covers `step` elements up to itself
            later = spec.combine(
                _apply, tuple(c[..., :-step] for c in data), tuple(c[..., step:] for c in data)
            )
            data = tuple(np.concatenate([c[..., :step], x], axis=-1) for c, x in zip(data, later))
            step *= 2
        bad = [np.logical_or.accumulate(x.bad[..., flip], axis=-1) for x in full
               if x.bad is not None]  # fmt: skip
        mark = np.logical_or.reduce(bad) if bad else None
        if exclusive:
            data = tuple(
                _shifted(c, dtype_limit(i, t)) for c, i, t in zip(data, spec.identity, dtypes)
            )
            mark = None if mark is None else _shifted(mark, False)
        return tuple(
            self.marked(
                c[..., flip].astype(self.dtype(t), copy=False),
                order,
                False if mark is None else mark[..., flip],
            )
            for c, t in zip(data, dtypes)
        )

    def contract(self, dtype: str, factors: Sequence[Named], gone: tuple[Dim, ...]) -> Named:
        """The sum over `gone` of the product of the factors, through BLAS where two share a sum."""
        _, sizes = self._common(factors)
        mark = None
        if any(x.bad is not None for x in factors):
            mark = self._bad_of(factors, gone, sizes)
        out = contract([(x.data, x.dims) for x in factors], gone)
        data = np.asarray(out[0]).astype(self.dtype(dtype), copy=False)
        if mark is None:
            return Named(data, out[1])
        return self.marked(data, out[1], align(mark.data, mark.dims, out[1]))

    def _bad_of(
        self, factors: Sequence[Named], gone: tuple[Dim, ...], sizes: dict[Dim, int]
    ) -> Named:
        dims = joint(x.dims for x in factors)
        kept = tuple(d for d in dims if d not in gone)
        marks = [
            Named(np.any(x.bad, axis=tuple(n for n, d in enumerate(x.dims) if d in gone)),
                  tuple(d for d in x.dims if d not in gone))
            for x in factors
            if x.bad is not None
        ]  # fmt: skip
        out = np.zeros(tuple(sizes[d] for d in kept), bool)
        for mark in marks:
            out = out | align(mark.data, mark.dims, kept)
        return Named(out, kept)

    def trisolve(self, matrix: Named, rhs: Named, row: Dim, col: Dim) -> Named:
        """x of (I + strict lower matrix) x = rhs along `row`, by forward substitution."""
        _, sizes = self._common((matrix, rhs))
        batch = tuple(d for d in joint((matrix.dims, rhs.dims)) if d not in (row, col))
        only = tuple(d for d in batch if d not in matrix.dims)
        shared = tuple(d for d in batch if d in matrix.dims)
        lower = align(matrix.data, matrix.dims, (*shared, row, col))
        full = self.spread(rhs, (*shared, row, *only), sizes)
        right = full.data.reshape(*full.data.shape[: len(shared) + 1], -1)
        x = np.array(right)
        for i in range(1, sizes[row]):
            x[..., i, :] -= (lower[..., i : i + 1, :i] @ x[..., :i, :])[..., 0, :]
        marks = [m for m in (matrix.bad, rhs.bad) if m is not None]
        return self.marked(x.reshape(full.data.shape), full.dims, bool(marks))

    # ---- memory ---------------------------------------------------------------------------

    def read(self, data: Any, index: Sequence[Named], known: Any = None) -> Named:
        """`data[index...]`, one index a dimension; bad where out of range or not `known`."""
        bad: Named | None = None
        inside = []
        for size, x in zip(data.shape, index):
            if x.data.size and not (x.data.min() >= 0 and x.data.max() < size):
                out = Named((x.data < 0) | (x.data >= size), x.dims)
                bad = out if bad is None else self.apply("or", "bool", (bad, out))
                x = Named(np.clip(x.data, 0, max(size - 1, 0)), x.dims)
            inside.append((x.data, x.dims))
        if bad is not None and 0 in data.shape:
            data = np.zeros([max(n, 1) for n in data.shape], data.dtype)
            known = None
        values, dims = gather(data, inside)
        if known is not None and not known.all():
            stored, where = gather(known, inside)
            lost = Named(~align(stored, where, dims), dims)
            bad = lost if bad is None else self.apply("or", "bool", (bad, lost))
        if bad is None:
            return Named(values, dims)
        mark = align(bad.data, bad.dims, dims)
        if values.dtype.kind == "f":
            values = np.where(mark, np.nan, values)
        return self.marked(values, dims, mark)

    def index(self, x: Named, index: dict[Dim, Named]) -> Named:
        """`x` with some of its dimensions read at integer arrays."""
        at = [
            index.get(d, Named(np.arange(n, dtype=np.int32), (d,)))
            for d, n in zip(x.dims, x.data.shape)
        ]
        return self.read(x.data, at, None if x.bad is None else ~x.bad)

    def pick(self, x: Named, dim: Dim, at: int) -> Named:
        """`x` at one position of a dimension that it may lack."""
        if dim not in x.dims:
            return x
        n = x.dims.index(dim)
        cut = (slice(None),) * n + (at,)
        bad = None if x.bad is None else x.bad[cut]
        return Named(x.data[cut], x.dims[:n] + x.dims[n + 1 :], bad)

    def stack(self, parts: Sequence[Named], dim: Dim) -> Named:
        """Equal-dimensioned parts along a new first dimension."""
        dims, sizes = self._common(parts)
        full = [self.spread(p, dims, sizes) for p in parts]
        data = np.stack([p.data for p in full])
        if all(p.bad is None for p in full):
            return Named(data, (dim, *dims))
        bad = np.stack([np.zeros(p.data.shape, bool) if p.bad is None else p.bad for p in full])
        return self.marked(data, (dim, *dims), bad)

    def concatenate(self, parts: Sequence[Named], dim: Dim) -> Named:
        """Parts joined along a dimension; where they lack it, they are all the same."""
        dims = parts[0].dims
        if dim not in dims:
            return parts[0]
        data = np.concatenate([align(p.data, p.dims, dims) for p in parts], dims.index(dim))
        if all(p.bad is None for p in parts):
            return Named(data, dims)
        marks = [np.zeros(p.data.shape, bool) if p.bad is None else p.bad for p in parts]
        bad = [align(m, p.dims, dims) for m, p in zip(marks, parts)]
        return Named(data, dims, np.concatenate(bad, dims.index(dim)))

    def cut(self, x: Named, dim: Dim, lo: int, hi: int) -> Named:
        """The part [lo, hi) of x along one of its dimensions."""
        box = (slice(None),) * x.dims.index(dim) + (slice(lo, hi),)
        return Named(x.data[box], x.dims, None if x.bad is None else x.bad[box])

    def merge(
        self, monoid: str, dtypes: Sequence[str], a: Sequence[Named], b: Sequence[Named]
    ) -> tuple[Named, ...]:
        """The monoid's combination of partial results over equal dimensions."""
        dims = a[0].dims
        left, right = ([align(x.data, x.dims, dims) for x in xs] for xs in (a, b))
        out = MONOIDS[monoid].combine(_apply, tuple(left), tuple(right))
        marks = [align(x.bad, x.dims, dims) for x in (*a, *b) if x.bad is not None]
        bad = np.logical_or.reduce(marks) if marks else False
        return tuple(
            self.marked(x.astype(self.dtype(t), copy=False), dims, bad) for x, t in zip(out, dtypes)
        )

    def choose(self, t: Named, lo: Named, hi: Named, inside: Named, outside: Named) -> Named:
        """`inside` where lo <= t < hi, else `outside`."""
        dims = joint((lo.dims, hi.dims))
        low, high = align(lo.data, lo.dims, dims), align(hi.data, hi.dims, dims)
        active = Named((low <= t.data) & (t.data < high), dims)
        return self.apply("where", None, [active, inside, outside], False)

    def any(self, x: Named) -> bool:
        return bool(np.any(x.data))

    def first(self, x: Any) -> tuple[tuple[int, ...], int]:
        """(coordinates of the first true element, number of true elements)."""
        where = np.argwhere(x)
        return tuple(where[0].tolist()), len(where)

    def extremes(self, x: Named) -> tuple[int, int]:
        """Least and greatest of integers."""
        return int(x.data.min()), int(x.data.max())

    def outside(self, x: Named, size: int) -> Named | None:
        """Where coordinates are not in [0, size); None where all are."""
        if not x.data.size or (x.data.min() >= 0 and x.data.max() < size):
            return None
        return Named((x.data < 0) | (x.data >= size), x.dims)

    def positions(self, at: Named, steps: Sequence[int]) -> Named:
        """The place of each coordinate in the list of steps, the last one; -1 where absent."""
        table = np.full(max([*steps, 0, *at.data.reshape(-1).tolist()]) + 1, -1, np.int64)
        table[list(steps)] = np.arange(len(steps))
        return Named(table[at.data], at.dims)

    def missing(self, like: Named, dtype: str) -> Named:
        """No value anywhere."""
        data, _ = self.memory(like.data.shape, dtype)
        return self.marked(data, like.dims, True)

    def write(
        self, data: Any, known: Any, index: Sequence[Named], value: Named, mask: Named | None
    ) -> None:
        """`data[index...] = value` where `mask`; indices are in range where it holds."""
        dims = joint([*(x.dims for x in index), () if mask is None else mask.dims])
        if extra := [d[0] for d in value.dims if d not in dims]:
            raise ValueError(f"the stored value varies along {extra}, the address does not")
        ranges = [progression(x.data) if len(x.dims) == 1 else None for x in index]
        flat = tuple(x.dims[0] for x in index if x.dims)
        if mask is None and len(set(flat)) == len(flat) and all(
            r is not None or not x.dims for r, x in zip(ranges, index)
        ):  # fmt: skip
            box = tuple(int(x.data) if r is None else r for r, x in zip(ranges, index))
            data[box] = align(value.data, value.dims, flat)
            known[box] = True if value.bad is None else ~align(value.bad, value.dims, flat)
            return
        _, sizes = self._common([*index, *(() if mask is None else (mask,))])
        full = [self.spread(x, dims, sizes).data for x in (*index, value)]
        good = None if value.bad is None else ~self.spread(
            Named(value.bad, value.dims), dims, sizes).data  # fmt: skip
        if mask is not None:
            keep = self.spread(mask, dims, sizes).data
            full = [x[keep] for x in full]
            good = None if good is None else good[keep]
        data[tuple(full[:-1])] = full[-1]
        known[tuple(full[:-1])] = True if good is None else good


def _apply(fn: str, *operands: Any) -> Any:
    return SCALARS[fn].numpy(*operands)


def _shifted(data: Any, first: float | bool) -> Any:
    """`data` one place later along the last dimension, `first` in front."""
    head = np.full((*data.shape[:-1], min(1, data.shape[-1])), first, data.dtype)
    return np.concatenate([head, data[..., :-1]], axis=-1)


NUMPY = NumpyArrays()
