"""What Triton's compiler made of a kernel in, a known fault of the compiler out.

Such kernels compile and may even be right by luck. They are refused like those that don't compile.
"""

from __future__ import annotations

import re

_WAIT = re.compile(r"ttng\.warp_group_dot_wait (%[\w#]+)")


def fault_of(ttgir: str) -> str | None:
    """A fault in Triton's GPU dialect, in words; None where none is known.

    Two waits for one product (Triton 3.6, when the sum of a loop is wanted in two layouts behind
    it): machine code then copies the registers of the sum before the first wait, while tensor
    cores still write them. On an H200 such a kernel was wrong in every run.
    """
    waited: set[str] = set()
    for line in ttgir.splitlines():
        text = line.strip()
        if text.startswith("}") or text.endswith("{"):  # another region
            waited.clear()
            continue
        for value in _WAIT.findall(text)[:1]:
            if value in waited:
                return f"the compiler waits twice for the product {value}: its registers are " \
                       "copied while tensor cores still write them"  # fmt: skip
            waited.add(value)
    return None
