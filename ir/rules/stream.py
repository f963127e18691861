"""stream: reduces over one axis in parts, cut where the work of a program ends.

    before:  y[m,n] = f(sum k x[m,k] w[k,n])
    after:   sums[p,m,n] = fold k.blk in [lo(p, t), hi(p, t)) from 0:
                               acc + sum k.in x[m, k.blk*block + k.in] w[k.blk*block + k.in, n]
             y[m,n] = f(fold p in [0, parts(t)) from 0: acc + sums[p,m,n])
             where t is the tile of (m, n), and all tiles have their blocks laid end to end
    args:    axis; block, elements of a block (a number); tiles, (axis, size) of the boxes that the
             results are cut into, outermost first; programs, among which the blocks of all tiles
             are dealt out (see `shares`); waves: of the tiles, so many times `programs` are shared
             beside those that are left over, and each of the others is one program's; group, as
             the kernel's fact of this name says. Sizes are numbers or knobs.
    Illegal: as of `split_reduce`; NO_AXIS (a box is cut along an axis that no value has),
             NONE_LEFT (each program does as many whole tiles as any other), TOO_BIG (more steps
             than int32 holds).

Products whose tiles make one wave and a bit of a second one take two waves by whole tiles. Here
every program takes as long as any other. Behind it come `tile`, with the same boxes, and `share`.
"""

from __future__ import annotations

from collections.abc import Mapping

from autosched.ir.extent import ext_cdiv, ext_mul, ext_product
from autosched.ir.node import Extent, Program, walk
from autosched.ir.ops import iota, knob
from autosched.ir.rules.action import Action, Illegal
from autosched.ir.rules.split_reduce import Pieces, in_pieces, part_axis
from autosched.ir.shares import Shares, shared_tiles, tile_number

MAX_INT32 = 2**31 - 1


def apply(program: Program, action: Action) -> Program | Illegal:
    axis, programs = action["axis"], action.size("programs")
    boxes = {str(a): _size(size) for a, size in action["tiles"]}
    extents = _extents(program)
    lost = [a for a in boxes if a not in extents]
    if lost:
        return Illegal("NO_AXIS", f"no value has the axis {lost[0]}")
    trips = {a: ext_cdiv(extents[a], size) for a, size in boxes.items()}

    def cut(blocks: Extent) -> Pieces | Illegal:
        tiles = ext_product(trips.values())
        shares = Shares(blocks, programs, shared_tiles(tiles, programs, action.size("waves")))
        if shares.shared == 0:
            return Illegal("NONE_LEFT", f"{programs} programs do all tiles in whole waves")
        reached = ext_mul(ext_mul(shares.shared, blocks), programs)
        if isinstance(reached, int) and reached > MAX_INT32:
            return Illegal("TOO_BIG", f"{programs} programs for {shares.shared} tiles")
        places = [(iota(a, extents[a]) // size, trips[a]) for a, size in boxes.items()]
        tile = tile_number(places, action.size("group"))
        lo, hi = shares.steps(tile, iota(part_axis(axis), shares.most))
        return Pieces(shares.most, lo, hi, shares.parts(tile))

    return in_pieces(program, axis, int(action["block"]), cut)


def _size(value: object) -> Extent:
    return knob(value[1:]) if isinstance(value, str) else int(str(value))


def _extents(program: Program) -> Mapping[str, Extent]:
    """The extents of all axes of a program's values."""
    return {a: e for n in walk(*program.body) for a, e in n.free}
