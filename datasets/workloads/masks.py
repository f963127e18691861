"""A mask's name and its numbers in, one predicate out that serves kernel, reference and FLOPs.

One convention holds inside: queries are the *last* positions of the keys (query row i of I stands
at position i + J - I: bottom-right alignment), and windows and prefixes are inclusive, so that a
window W keeps W keys on a side besides the query's own. What other codebases mean is converted
where their graphs are imported. A predicate sees positions, never rows, and these may be any
int32 values: iotas, tiles of a block list, pages. Packed documents are two arrays, at each
position the start and the end of its document: the bounds of a loop can be read off these, and
can't be off ids. Two names of LongCA's list have no published definition (qk_sparse, hash_sparse)
and are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from autosched.datasets.workloads.define import Draw, Sizes
from autosched.ir.interp import value_of
from autosched.ir.node import Node
from autosched.ir.ops import abs_, cast, const, eq, input_, iota, reduce_, sum_, take

BACKWARD = 2.5  # FLOPs of a backward pass per FLOP of the forward one
Predicate: TypeAlias = "Callable[[Node, Node, Facts], Node]"


@dataclass(frozen=True)
class Facts:
    """What predicates read besides the two positions: numbers, and arrays as input nodes."""

    tokens: int  # keys
    heads: int = 1
    window: int = 0
    prefix: int = 0
    block: int = 1
    sinks: int = 0
    stride: int = 1
    slots: int = 1  # entries of a list of key blocks
    blocks: int = 1  # blocks of variable size
    docs: int = 1  # documents; read, as density is, by the draws of arrays alone
    density: float = 0.4  # share of allowed blocks

    def start(self, at: Node | int) -> Node:
        """The first position of the document of a position."""
        return self._of_document("start", at)

    def end(self, at: Node | int) -> Node:
        """The first position behind the document of a position."""
        return self._of_document("end", at)

    def _of_document(self, name: str, at: Node | int) -> Node:
        here = const(at, "int32") if isinstance(at, int) else at
        return take(input_(name, {"j": self.tokens}, "int32"), "j", here)

    def allowed(self, rows: int, i: Node, j: Node) -> Node:
        """Whether block i may see block j, per head."""
        table = input_("allowed", {"h": self.heads, "m": rows, "n": rows}, "bool")
        return take(take(table, "m", i), "n", j)

    def block_of(self, at: Node) -> Node:
        """The block of variable size of a position."""
        return take(input_("block_of", {"j": self.tokens}, "int32"), "j", at)

    @property
    def rows(self) -> int:
        """Blocks of one size that cover the tokens."""
        return -(-self.tokens // self.block)


@dataclass(frozen=True)
class Mask:
    """A predicate of positions (i, j), and the names of the numbers in `Facts` that it reads."""

    predicate: Predicate
    parameters: tuple[str, ...] = ()


def _full(i: Node, j: Node, f: Facts) -> Node:
    return const(True, "bool")


def _causal(i: Node, j: Node, f: Facts) -> Node:
    return i >= j


def _document(i: Node, j: Node, f: Facts) -> Node:
    return (j >= f.start(i)) & (j < f.end(i))


def _causal_document(i: Node, j: Node, f: Facts) -> Node:
    return (i >= j) & (j >= f.start(i))


def _share_question(i: Node, j: Node, f: Facts) -> Node:
    return (i >= j) & ((j >= f.start(i)) | (j < f.end(0)))  # the first document is the question


def _causal_blockwise(i: Node, j: Node, f: Facts) -> Node:
    return (i >= j) & ((j >= f.start(i)) | (i >= f.start(f.tokens - 1)))  # or i is in the last


def _prefix_causal(i: Node, j: Node, f: Facts) -> Node:
    return (i >= j) | (j <= f.prefix)


def _prefix_document(i: Node, j: Node, f: Facts) -> Node:
    return _document(i, j, f) & ((i >= j) | (j <= f.start(i) + f.prefix))


def _sliding(i: Node, j: Node, f: Facts) -> Node:
    return abs_(i - j) <= f.window


def _sliding_causal(i: Node, j: Node, f: Facts) -> Node:
    return (i >= j) & (i - j <= f.window)


def _global_sliding(i: Node, j: Node, f: Facts) -> Node:
    return _sliding(i, j, f) | (i < 2 * f.window) | (j < 2 * f.window)


def _block_causal_document(i: Node, j: Node, f: Facts) -> Node:
    return _document(i, j, f) & (j < (i // f.block + 1) * f.block)


def _sink_local(i: Node, j: Node, f: Facts) -> Node:
    return (i >= j) & ((j < f.sinks) | (i - j <= f.window))


def _strided(i: Node, j: Node, f: Facts) -> Node:
    return eq(i, j) | (eq(j % f.stride, f.stride - 1) & (j < i))


def _segment_causal(i: Node, j: Node, f: Facts) -> Node:
    return (i >= j) & eq(i // f.block, j // f.block)


def _blocks(i: Node, j: Node, f: Facts) -> Node:
    return f.allowed(f.rows, i // f.block, j // f.block)


def _variable_blocks(i: Node, j: Node, f: Facts) -> Node:
    return f.allowed(f.blocks, f.block_of(i), f.block_of(j))


def _block_lists(i: Node, j: Node, f: Facts) -> Node:
    """The key's block is among the first `counts` entries of the list of (head, query block)."""
    dims = {"h": f.heads, "m": f.rows}
    listed = take(input_("listed", {**dims, "n": f.slots}, "int32"), "m", i // f.block)
    count = take(input_("counts", dims, "int32"), "m", i // f.block)
    return reduce_("any", "n", eq(listed, j // f.block) & (iota("n", f.slots) < count))


def _per_head(i: Node, j: Node, f: Facts) -> Node:
    """Causal, and by the head's kind: all keys, sinks and a window, or listed and own blocks."""
    kind = input_("kind", {"h": f.heads}, "int32")
    listed = _block_lists(i, j, f) | eq(i // f.block, j // f.block)
    streaming = eq(kind, 1) & _sink_local(i, j, f)
    return (i >= j) & (eq(kind, 0) | streaming | (eq(kind, 2) & listed))


MASKS: dict[str, Mask] = {
    "full": Mask(_full),
    "causal": Mask(_causal),
    "full_document": Mask(_document),
    "causal_document": Mask(_causal_document),
    "share_question": Mask(_share_question),
    "causal_blockwise": Mask(_causal_blockwise),
    "prefix_lm_causal": Mask(_prefix_causal, ("prefix",)),
    "prefix_lm_document": Mask(_prefix_document, ("prefix",)),
    "sliding_window": Mask(_sliding, ("window",)),
    "sliding_window_causal": Mask(_sliding_causal, ("window",)),
    "global_sliding_window": Mask(_global_sliding, ("window",)),
    "block_causal_document": Mask(_block_causal_document, ("block",)),
    "sink_local": Mask(_sink_local, ("sinks", "window")),
    "strided": Mask(_strided, ("stride",)),
    "segment_causal": Mask(_segment_causal, ("block",)),
    "blocks": Mask(_blocks, ("heads", "block")),
    "variable_blocks": Mask(_variable_blocks, ("heads", "blocks")),
    "block_lists": Mask(_block_lists, ("heads", "block", "slots")),
    "per_head": Mask(_per_head, ("heads", "block", "slots", "sinks", "window")),
}


def allows(mask: str, i: Node, j: Node, tokens: int, **numbers: Any) -> Node:
    """Whether position i sees position j, any int32 values; `numbers` fill `Facts`."""
    return MASKS[mask].predicate(i, j, Facts(tokens, **numbers))


def mask_node(mask: str, i: int, j: int, **numbers: Any) -> Node:
    """The predicate over axes "i" of queries and "j" of keys (and "h" where heads differ)."""
    return allows(mask, iota("i", i) + (j - i), iota("j", j), j, **numbers)


def masked_in(mask: str, i: int, j: int, arrays: Mapping[str, Any], **numbers: Any) -> np.ndarray:
    """The predicate as an array of bools, [i, j] or [h, i, j]."""
    node = mask_node(mask, i, j, **numbers)
    got = value_of(node, arrays, [a for a in ("h", "i", "j") if a in node.names])
    return np.asarray(np.broadcast_to(got, (*got.shape[:-2], i, j)))


def area(mask: str, i: int, j: int, arrays: Mapping[str, Any], **numbers: Any) -> float:
    """Pairs (query, key) that are let through: of one head, or the mean over heads."""
    rows = min(i, max(1, (1 << 22) // j))
    first = input_("first", {}, "int32")
    total = 0.0
    for at in range(0, i, rows):
        part = iota("i", min(rows, i - at)) + first + (j - i)
        node = allows(mask, part, iota("j", j), j, **numbers)
        seen = node & (part >= part) & (iota("j", j) >= 0)  # over both axes, whatever it reads
        count = value_of(sum_(("i", "j"), cast(seen, "int64")),
                         {**arrays, "first": np.int32(at)}, [a for a in ("h",) if a in node.names])
        total += float(np.mean(count))
    return total


def flops(area: float, b: int, h: int, d: int, e: int, backward: bool = False) -> float:
    """Multiplications and additions of q k and p v on the unmasked pairs, by LongCA's count."""
    return 2.0 * area * b * h * (d + e) * (BACKWARD if backward else 1.0)


# ---- how the arrays are drawn ------------------------------------------------------------------
# Arrays that must agree with each other come from a generator of their own with a fixed seed.


def cuts(tokens: int, parts: int) -> np.ndarray:
    """Starts of `parts` consecutive parts of random lengths, none empty, and the end."""
    inner = np.random.default_rng(42).permutation(np.arange(1, tokens))[: parts - 1]
    return np.asarray([0, *sorted(inner), tokens], np.int32)


def _part_of(tokens: int, parts: int) -> np.ndarray:
    edges = cuts(tokens, parts)
    return np.repeat(np.arange(parts, dtype=np.int32), np.diff(edges))


def _starts(tokens: int, parts: int) -> np.ndarray:
    edges = cuts(tokens, parts)
    return np.repeat(edges[:-1], np.diff(edges))


def _ends(tokens: int, parts: int) -> np.ndarray:
    edges = cuts(tokens, parts)
    return np.repeat(edges[1:], np.diff(edges))


def _allowed(rng: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
    """Blocks at random, the diagonal always, so that no row is empty."""
    return (rng.random(shape) < sizes.get("density", Facts.density)) | np.eye(shape[-1], dtype=bool)


def _listed(rng: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
    """Different key blocks in each row, in no order."""
    heads, rows, slots = shape
    keys = -(-sizes.get("j", sizes["i"]) // sizes.get("block_k", sizes["block"]))
    drawn = [rng.permutation(keys)[:slots] for _ in range(heads * rows)]
    return np.asarray(drawn, np.int32).reshape(shape)


def _counts(rng: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
    return rng.integers(1, sizes["slots"] + 1, shape)


DRAWS: dict[str, Draw] = {
    "start": lambda _, shape, sizes: _starts(shape[0], sizes.get("docs", 3)),
    "end": lambda _, shape, sizes: _ends(shape[0], sizes.get("docs", 3)),
    "block_of": lambda _, shape, sizes: _part_of(shape[0], sizes["blocks"]),
    "allowed": _allowed,
    "listed": _listed,
    "counts": _counts,
    "kind": lambda _, shape, __: np.arange(shape[0]) % 3,
}
