"""Nothing in, Triton's interpreter in this process mended: bfloat16, narrow floats, reductions.

It is imported where TRITON_INTERPRET is set, before any kernel is.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np


@functools.cache
def mend_interpreter() -> None:
    """What Triton 3.6's interpreter gets wrong or does element by element.

    It loses that a comparison of scalars is a bool where that is broadcast, and counts loops in
    integers of Python, which have none of a tensor's methods.

    It holds bfloat16 as the bits of an integer, multiplies those in `tl.dot` and cuts off what does
    not fit into a narrow float where the hardware rounds to even; and it reduces and
    scans one element at a time, which costs seconds a tile: here whole slices, in the same order,
    by the kernel's own combining function.
    """
    import torch
    import triton.language as tl
    from triton.runtime import interpreter as it

    patch = it._patch_lang_core
    plain, splat = it.InterpreterBuilder.create_dot, it.InterpreterBuilder.create_splat

    narrow = {tl.bfloat16: torch.bfloat16, tl.float8e4nv: torch.float8_e4m3fn,
              tl.float8e5: torch.float8_e5m2}  # fmt: skip

    def convert(data: Any, source: Any, target: Any, mode: Any) -> Any:
        """Bits of floats in another type, ties to even."""
        raw = torch.from_numpy(np.array(data))
        wide = raw.view(narrow[source]).float() if source in narrow else raw.float()
        if target not in narrow:
            return wide.numpy().astype(it._get_np_dtype(target)).view(
                f"uint{target.primitive_bitwidth}")  # fmt: skip
        bits = torch.uint16 if target == tl.bfloat16 else torch.uint8
        return wide.to(narrow[target]).view(bits).numpy()

    def patch_core(lang: Any, scope: Any) -> None:
        patch(lang, scope)
        numbers = lang.range

        def counted(*args: Any, **options: Any) -> Any:
            for i in numbers(*args, **options):
                handle = it.TensorHandle(np.array([i], np.int32), tl.int32)
                yield tl.core.tensor(handle, tl.int32)

        scope.set_attr(lang, "range", counted)

    def create_splat(self: Any, kind: Any, arg: Any) -> Any:
        if arg.data.dtype == bool:
            return it.TensorHandle(np.full(kind.shape, arg.data.reshape(())), tl.int1)
        return splat(self, kind, arg)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        wide = [self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x
                for x in (a, b)]  # fmt: skip
        return plain(self, *wide, *rest)

    def slices(self: Any, given: tuple[Any, ...]) -> list[list[Any]]:
        """Running combinations along the axis, one entry a position."""
        data = [x.handle.data for x in given]
        count = data[0].shape[self.axis]
        steps = [[np.take(d, i, axis=self.axis) for d in data] for i in range(count)]
        running = [steps[0]]
        for step in steps[1:]:
            args = [self.to_tensor(np.asarray(x), g.dtype)
                    for part in (running[-1], step) for x, g in zip(part, given)]  # fmt: skip
            got = self.combine_fn.fn(*args)
            got = got if isinstance(got, tuple) else (got,)
            running.append([np.reshape(x.handle.data, np.shape(step[0])) for x in got])
        return running

    def generic_reduce(self: Any, given: tuple[Any, ...]) -> list[Any]:
        last = slices(self, given)[-1]
        return [self.to_tensor(x if np.ndim(x) else x.item(), g.dtype) for x, g in zip(last, given)]

    def generic_scan(self: Any, given: tuple[Any, ...]) -> list[Any]:
        running = slices(self, given)
        return [self.to_tensor(np.stack([r[n] for r in running], axis=self.axis), g.dtype)
                for n, g in enumerate(given)]  # fmt: skip

    it._patch_lang_core = patch_core
    it.InterpreterBuilder.create_dot = dot
    it.InterpreterBuilder.create_splat = create_splat
    it._convert_float = convert
    it.ReduceOps.generic_reduce = generic_reduce
    it.ScanOps.generic_scan = generic_scan
