"""Every mask as the sentence of its paper in plain Python over one pair of positions.

Nothing is shared with the definitions: these are what predicates, areas and attention are
compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

# (head, query position, key position, arrays by name, numbers) to whether the pair is kept.
Pair = Callable[[int, int, int, Any, Any], bool]


def same(i: int, j: int, x: Any) -> bool:
    return bool(x["start"][i] == x["start"][j])


def first_of(j: int, x: Any) -> int:
    """The first position whose document is that of j."""
    return list(x["start"]).index(x["start"][j])


def block_list(h: int, i: int, j: int, x: Any, s: Any) -> bool:
    row = i // s.block
    kept = x["listed"][h, row][: x["counts"][h, row]]
    return any(c * s.block <= j < (c + 1) * s.block for c in kept)


def per_head(h: int, i: int, j: int, x: Any, s: Any) -> bool:
    if j > i or x["kind"][h] == 0:
        return j <= i
    if x["kind"][h] == 1:
        return j < s.sinks or j >= i - s.window
    return i // s.block == j // s.block or block_list(h, i, j, x, s)


PLAIN: dict[str, Pair] = {
    "full": lambda h, i, j, x, s: True,
    "causal": lambda h, i, j, x, s: j <= i,
    "full_document": lambda h, i, j, x, s: same(i, j, x),
    "causal_document": lambda h, i, j, x, s: j <= i and same(i, j, x),
    "share_question": lambda h, i, j, x, s: (
        (j <= i and same(i, j, x)) or (x["start"][j] == 0 and x["start"][i] != 0)
    ),
    "causal_blockwise": lambda h, i, j, x, s: (
        (j <= i and same(i, j, x))
        or (x["start"][i] == max(x["start"]) and x["start"][j] != max(x["start"]))
    ),
    "prefix_lm_causal": lambda h, i, j, x, s: j <= i or j <= s.prefix,
    "prefix_lm_document": lambda h, i, j, x, s: (
        same(i, j, x) and (j <= i or j - first_of(j, x) <= s.prefix)
    ),
    "sliding_window": lambda h, i, j, x, s: i - s.window <= j <= i + s.window,
    "sliding_window_causal": lambda h, i, j, x, s: i - s.window <= j <= i,
    "global_sliding_window": lambda h, i, j, x, s: (
        i - s.window <= j <= i + s.window or min(i, j) < 2 * s.window
    ),
    "block_causal_document": lambda h, i, j, x, s: (
        same(i, j, x) and j < (i // s.block + 1) * s.block
    ),
    "sink_local": lambda h, i, j, x, s: j <= i and (j < s.sinks or j >= i - s.window),
    "strided": lambda h, i, j, x, s: j == i or (j < i and (j + 1) % s.stride == 0),
    "segment_causal": lambda h, i, j, x, s: j <= i and j // s.block == i // s.block,
    "blocks": lambda h, i, j, x, s: bool(x["allowed"][h, i // s.block, j // s.block]),
    "variable_blocks": lambda h, i, j, x, s: bool(
        x["allowed"][h, x["block_of"][i], x["block_of"][j]]
    ),
    "block_lists": block_list,
    "per_head": per_head,
}


def plain(mask: str, h: int, i: int, j: int, x: Any, s: Any) -> np.ndarray[Any, Any]:
    """[h, i, j] bools; query row n of i stands at position n + j - i."""
    pair = PLAIN[mask]
    return np.array(
        [[[pair(a, b + j - i, c, x, s) for c in range(j)] for b in range(i)] for a in range(h)]
    )
