"""A square of vectors in, its transpose out: shuffles instead of one scalar access an element.

Lanes with a stride in memory cost one scalar load each. Where a whole square of them is wanted
(a transposed copy, a layout change), loading its rows and shuffling costs log2(n) steps of n
two-vector shuffles: about a fifth of the time, and a tenth of the code.
"""

from __future__ import annotations

from collections.abc import Sequence

from autosched.codegen import tvm_api as t


def transpose(block: t.Block, rows: Sequence[t.Expr]) -> list[t.Expr]:
    """columns[j][i] = rows[i][j] for n vectors of n lanes, n a power of two.

    Step s swaps the off-diagonal blocks of size s in every 2s x 2s block.
    """
    n = len(rows)
    if n & (n - 1) or any(t.lanes_of(row) != n for row in rows):
        raise ValueError("a transpose takes n vectors of n lanes, n a power of two")
    current = [block.let(row, "row") for row in rows]
    step = 1
    while step < n:
        low = [i if not i & step else n + i - step for i in range(n)]
        high = [i + step if not i & step else n + i for i in range(n)]
        swapped = list(current)
        for i in (i for i in range(n) if not i & step):
            pair = (current[i], current[i + step])
            swapped[i] = block.let(t.shuffle(pair, low), "low")
            swapped[i + step] = block.let(t.shuffle(pair, high), "high")
        current = swapped
        step *= 2
    return current
