"""Codecs: words of memory in, values out, and back, as expressions of the algebra.

`CODECS` is the one table: how wide a code is, how codes lie in words, what a code stands for, and
what scales go with it and where they are multiplied. Unpacking is a view of the words, a shift and
a mask; decoding and encoding are arithmetic on integers and bits.

    w = coded(CODECS["marlin"], "w", {"n": n, "k": k}, "k")     codes in memory, int8 values here
    y = scaled_dot("k", x, w, scales, CODECS["marlin"].scale)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autosched.datasets.workloads.formats import (
    F32,
    I32,
    Code,
    Format,
    bipolar,
    exponent_only,
    half_even,
    minifloat,
    whole,
)
from autosched.ir.node import Node
from autosched.ir.ops import (
    abs_,
    cast,
    const,
    input_,
    iota,
    map_,
    max_,
    maximum,
    minimum,
    reaxis,
    sum_,
    where,
)
from autosched.ir.scalar import FLOATS, ITEMSIZE

Extents = Mapping[str, int]


@dataclass(frozen=True)
class Scale:
    """What values are multiplied by: one number a tensor, row, or group of `group` along the
    packed axis; stored as `dtype` (a float type, or "e8m0": bytes of exponents).

    place: where: "before" the product is summed, "group": after each group's sum, "after" all.
    """

    kind: str = "none"  # "none" | "tensor" | "row" | "group"
    group: int = 0
    dtype: str = "float16"
    place: str = "before"


@dataclass(frozen=True)
class Codec:
    """What codes stand for; the type of the words that hold them; how they lie there (one of
    `packing.LAYOUTS`); the scales that go with them."""

    format: Format
    word: str
    layout: str = "low first"
    scale: Scale = Scale()

    @property
    def bits(self) -> int:
        return self.format.bits

    @property
    def width(self) -> int:
        """Bits of a word."""
        return 8 * ITEMSIZE[self.word]

    @property
    def per_word(self) -> int:
        """Codes of a word, where none straddles two."""
        return self.width if self.layout == "planes" else self.width // self.bits


# ---- how codes lie in words --------------------------------------------------------------------


def word_extents(codec: Codec, axis: str, size: int) -> dict[str, int]:
    """The axes of memory that stand for `axis`, outermost first: planes `kp`, words `kw`."""
    if codec.layout == "stream":
        return {f"{axis}w": -(-size * codec.bits // codec.width)}
    plane = {f"{axis}p": codec.bits} if codec.layout == "planes" else {}
    return {**plane, f"{axis}w": -(-size // codec.per_word)}


def words(
    codec: Codec, name: str, sizes: Extents, dims: str, along: str, kind: str = "weight"
) -> Node:
    """The input `name` over `dims`, where words of codes stand for the axis `along`."""
    extents: dict[str, int] = {}
    for axis in dims.split():
        extents |= word_extents(codec, axis, sizes[axis]) if axis == along else {axis: sizes[axis]}
    return input_(name, extents, codec.word, kind)


def codes(codec: Codec, stored: Node, axis: str, size: int, lowest: int = 0) -> Node:
    """The codes along `axis` as int32; of planes only those from `lowest` on are read, as the
    lowest bits of the result."""
    at, width = iota(axis, size), codec.width
    if codec.layout == "planes":
        bits = [
            map_("shl", plane_bit(codec, stored, axis, at, p), p - lowest)
            for p in range(lowest, codec.bits)
        ]
        return total(bits)
    mask = const(2**codec.bits - 1, codec.word)
    if codec.layout == "stream":
        start = at * codec.bits
        last = int(stored.extent(f"{axis}w")) - 1
        inside = cast(start % width, codec.word)
        low = map_("shr", reaxis(stored, {f"{axis}w": start // width}), inside)
        next_ = reaxis(stored, {f"{axis}w": minimum(start // width + 1, last)})
        high = map_("shl", map_("shl", next_, 1), width - 1 - inside)  # never by the width
        return cast(map_("bitand", map_("bitor", low, high), mask), I32)
    word = reaxis(stored, {f"{axis}w": at // codec.per_word})
    return cast(map_("bitand", map_("shr", word, _shift(codec, at % codec.per_word)), mask), I32)


def _shift(codec: Codec, slot: Node) -> Node:
    """Where in its word the element `slot` begins."""
    if codec.layout == "interleaved":
        slot = slot // 2 + slot % 2 * (codec.per_word // 2)
    return cast(slot * codec.bits, codec.word)


def plane_bit(codec: Codec, stored: Node, axis: str, at: Node, plane: int) -> Node:
    """Bit `plane` of the code at `at`, as int32."""
    word = reaxis(stored, {f"{axis}p": const(plane, I32), f"{axis}w": at // codec.width})
    bit = map_("shr", word, cast(at % codec.width, codec.word))
    return cast(map_("bitand", bit, const(1, codec.word)), I32)


def packed(codec: Codec, value: Node, axis: str) -> Node:
    """Words of int32 codes along `axis`: `codes` backwards, for layouts where none straddles."""
    assert codec.layout != "stream", "straddling codes are read only"
    slot = iota("slot", codec.per_word)
    split = cast(grouped(value, axis, codec.per_word, f"{axis}w", "slot"), codec.word)
    if codec.layout == "planes":
        plane = iota(f"{axis}p", codec.bits, codec.word)
        bit = map_("bitand", map_("shr", split, plane), const(1, codec.word))
        return sum_("slot", map_("shl", bit, cast(slot, codec.word)))
    return sum_("slot", map_("shl", split, _shift(codec, slot)))


def coded(
    codec: Codec, name: str, sizes: Extents, dims: str, along: str, kind: str = "weight"
) -> Node:
    """The values of the input `name` over `dims`, stored as codes along `along`; no scales."""
    stored = words(codec, name, sizes, dims, along, kind)
    return codec.format.decode(codes(codec, stored, along, sizes[along]))


# ---- groups and scales -------------------------------------------------------------------------


def total(terms: list[Node]) -> Node:
    out = terms[0]
    for term in terms[1:]:
        out = out + term
    return out


def grouped(value: Node, axis: str, size: int, outer: str, inner: str) -> Node:
    """`axis` as groups of `size`; what the last group lacks is zero."""
    extent = int(value.extent(axis))
    at = iota(outer, -(-extent // size)) * size + iota(inner, size)
    if extent % size == 0:
        return reaxis(value, {axis: at})
    return where(at < extent, reaxis(value, {axis: minimum(at, extent - 1)}), 0)


def ungrouped(value: Node, outer: str, inner: str, axis: str, extent: int) -> Node:
    """`grouped` backwards."""
    size = int(value.extent(inner))
    return reaxis(value, {outer: iota(axis, extent) // size, inner: iota(axis, extent) % size})


def spread(value: Node, group: str, axis: str, extent: int, size: int) -> Node:
    """A value of groups, at each element of `axis`."""
    return reaxis(value, {group: iota(axis, extent) // size})


def scales(
    scale: Scale, name: str, sizes: Extents, dims: str, along: str, kind: str = "weight"
) -> Node:
    """The scales of values over `dims` as float32: an input over the axes that the kind leaves;
    groups along `along` are the axis `kg`."""
    extents = {}
    for axis in dims.split() if scale.kind in ("row", "group") else ():
        if axis != along:
            extents[axis] = sizes[axis]
        elif scale.kind == "group":
            extents[f"{axis}g"] = -(-sizes[axis] // scale.group)
    if scale.dtype == "e8m0":
        return CODECS["e8m0"].format.decode(cast(input_(name, extents, "uint8", kind), I32))
    return cast(input_(name, extents, scale.dtype, kind), F32)


def product(a: Node, b: Node) -> Node:
    """a b as int32 where both are integers, else as float32."""
    kind = F32 if a.dtype in FLOATS or b.dtype in FLOATS else I32
    return cast(a, kind) * cast(b, kind)


def scaled_dot(axis: str, a: Node, b: Node, by: Node, place: str, group: int = 0) -> Node:
    """The sum over `axis` of a b and their scale, as float32; see `Scale.place`. `by` has the
    group axis `kg` where it is one a group."""
    size, name = int(b.extent(axis)), f"{axis}g"
    if place == "after":
        return cast(sum_(axis, product(a, b)), F32) * by
    if place == "before":
        every = spread(by, name, axis, size, group) if name in by.names else by
        return sum_(axis, cast(a, F32) * (cast(b, F32) * every))
    a, b = (grouped(x, axis, group, name, "u") for x in (a, b))
    return sum_(name, cast(sum_("u", product(a, b)), F32) * by)


# ---- the table ---------------------------------------------------------------------------------

GROUP = Scale("group", 128)
ROW = Scale("row", place="after")
PER_GROUP = Scale("group", 128, place="group")

CODECS: dict[str, Codec] = {
    # Integers of all sorts.
    "u2": Codec(whole(2, 0), "uint8", scale=Scale("group", 32)),
    "u4": Codec(whole(4, 0), "uint8", scale=PER_GROUP),
    "s4": Codec(whole(4, None), "uint8", scale=PER_GROUP),
    "u8": Codec(whole(8, 0, "int16"), "uint8"),
    "s8": Codec(whole(8, None), "uint8", scale=ROW),
    "marlin": Codec(whole(4, 8), "uint32", "interleaved", GROUP),
    "marlin 2:4": Codec(whole(4, 8), "uint32", "low first", GROUP),
    "index 2:4": Codec(whole(2, 0), "uint32"),
    "gptq3": Codec(whole(3, 0), "uint32", "stream", GROUP),
    "itq3": Codec(whole(3, 0), "uint32", "planes", Scale("group", 256)),
    "flexq6": Codec(whole(6, None), "uint32", "planes", PER_GROUP),
    "flexq8": Codec(whole(8, None), "uint32", "planes", PER_GROUP),
    "kv4": Codec(whole(4, 0), "uint8", scale=Scale("group", 64)),
    "parent8": Codec(whole(8, 128), "uint32", "planes", GROUP),
    # Signs and digits.
    "ternary": Codec(whole(2, 1), "uint8", scale=Scale("tensor", dtype=F32, place="after")),
    "sign": Codec(bipolar(1), "uint32"),
    **{f"bipolar{n}": Codec(bipolar(n), "uint32", "planes", ROW) for n in (1, 2, 3, 4)},
    # Floats of few bits, and exponents.
    "e2m1": Codec(minifloat(2, 1), "uint8"),
    "mxfp4": Codec(minifloat(2, 1), "uint8", scale=Scale("group", 32, "e8m0", "group")),
    "nvfp4": Codec(minifloat(2, 1), "uint8", scale=Scale("group", 16, "float8_e4m3", "group")),
    "e2m0": Codec(minifloat(2, 0), "uint32", "planes", ROW),
    "e3m0": Codec(minifloat(3, 0), "uint8", scale=ROW),
    "e2m2": Codec(minifloat(2, 2), "uint32", "stream", ROW),
    "e2m3": Codec(minifloat(2, 3), "uint32", "stream", ROW),
    "e3m2": Codec(minifloat(3, 2), "uint32", "planes", ROW),
    "e3m3": Codec(minifloat(3, 3), "uint32", "stream", ROW),
    "e4m3": Codec(minifloat(4, 3, "nan"), "uint8", scale=ROW),
    "e5m2": Codec(minifloat(5, 2, "ieee"), "uint8", scale=ROW),
    "ue5m3": Codec(minifloat(5, 3, "nan", signed=False), "uint8"),
    "e8m0": Codec(exponent_only(), "uint8"),
}  # fmt: skip


# ---- dynamic quantisation ----------------------------------------------------------------------


def encoded(codec: Codec, x: Node, rounded: Code = half_even) -> Node:
    """The int32 code of each x, which is scaled already."""
    return codec.format.encode(x, rounded)


def quantised(codec: Codec, x: Node, rounded: Code = half_even) -> Node:
    """The value of the code of each x."""
    return codec.format.decode(encoded(codec, x, rounded))


def largest(x: Node, axes: str) -> Node:
    """max |x| over axes, and a tiny number where all are zero."""
    return maximum(max_(axes.split(), abs_(x)), 2.0**-100)


def absmax(codec: Codec, x: Node, axes: str) -> tuple[Node, Node]:
    """(values of codes, scale) of x, the largest of `axes` at the top of the codec's range."""
    scale = largest(x, axes) / codec.format.top
    return quantised(codec, x / scale), scale


def dense24(values: Node, index: Node, axis: str, size: int) -> Node:
    """2 of every 4 elements of `axis`, from values and their places 0..3 over half of it."""
    at = iota(axis, size)
    pair = [
        (reaxis(values, {axis: at // 4 * 2 + n}), reaxis(index, {axis: at // 4 * 2 + n}))
        for n in (0, 1)
    ]
    here = [where(map_("eq", cast(place, I32), at % 4), value, 0) for value, place in pair]
    return here[0] + here[1]


def hadamard(row: str, column: str, size: int, dtype: str = F32) -> Node:
    """The orthogonal Hadamard matrix of a power of two, by parity of the shared bits."""
    both = map_("bitand", iota(row, size), iota(column, size))
    odd = map_("bitand", map_("popcount", both), 1)
    return cast(1 - 2 * odd, dtype) * float(size) ** -0.5
