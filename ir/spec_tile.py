"""What a tile program must obey, as rows of a table."""

from __future__ import annotations

from autosched.ir.extent import knobs_of, simplify
from autosched.ir.follows import conjuncts
from autosched.ir.linear import range_of
from autosched.ir.loops import grid_of
from autosched.ir.node import Node, walk
from autosched.ir.ops import const, kernel_facts
from autosched.ir.scope import scope_of
from autosched.ir.shares import Shares, tile_of
from autosched.ir.spec import Found, Row, Statement, View, intervals, loads, starts

MAX_LANES = 64


def _top_level(view: View) -> Found:
    for root in view.program.body:
        if root.op != "kernel":
            yield root, "stands where a kernel belongs"
    for node in view.nodes:
        if any(s.op == "kernel" for s in node.src):
            yield node, "holds a kernel"


def _knobs(view: View) -> Found:
    if view.concrete:
        for name in sorted(knobs_of(view.program)):
            yield "program", f"knob {name!r} is not bound"


def _handles(view: View) -> Found:
    for node in walk(*view.program.body):
        handles = node.src[1:] if node.op in ("load", "store") else node.src
        for source in handles:
            if source.op in ("input", "buffer"):
                yield node, f"uses the handle {source.attr[0]!r} as a value; load it"


def _buffers(view: View) -> Found:
    by_name: dict[str, Node] = {}
    for node in view.buffers:
        if by_name.setdefault(node.attr[0], node) is not node:
            yield node, "is declared in two ways"
    for name in sorted(set(by_name) & {n.attr[0] for n in view.program.inputs}):
        yield by_name[name], "has the name of an input"
    for out in view.program.outputs:
        found = by_name.get(out.name)
        want = (out.name, tuple(out.extents), out.dtype, "output")
        if found is not None and found.attr != want:
            yield found, f"is not the output {want}"


def _stored(view: View) -> Found:
    stored = {s.handle for s in view.statements}
    names = {h.attr[0] for h in stored if h.attr[3] == "output"}
    for out in view.program.outputs:
        if out.name not in names:
            yield f"output {out.name}", "is never stored"
    for name in sorted(names - {o.name for o in view.program.outputs}):
        yield f"buffer {name}", "is stored as an output and is none"
    for handle in sorted(stored, key=lambda h: str(h.attr[0])):
        if handle.attr[3] in ("packed", "register"):
            yield handle, f"is stored to, and its home is {handle.attr[3]}"


def _covered(view: View) -> Found:
    """The addresses of all stores to an output together reach both ends of every dimension."""
    for out in view.program.outputs:
        stores = [s for s in view.statements if s.handle.attr[0] == out.name]
        for n, extent in enumerate(out.extents):
            if not stores or not isinstance(extent, int) or extent < 1:
                continue
            ranges = [_reach(s.store, n) for s in stores]
            low = min(0 if lo is None else lo for lo, _ in ranges)
            high = max(extent if hi is None else hi for _, hi in ranges)
            if low > 0 or high < extent - 1:
                where = f"output {out.name}"
                yield where, f"dimension {n} of extent {extent} is stored at {low}..{high} alone"


def _reach(store: Node, n: int) -> tuple[int | None, int | None]:
    """Bounds of the addresses of a store along dimension n."""
    lo, hi = range_of(simplify(starts(store)[n]))
    tile = store.attr[0][n]
    if tile is None:
        return lo, hi
    _, size, stride = tile
    return lo, hi + (size - 1) * stride if hi is not None and isinstance(size, int) else None


def _stored_once(view: View) -> Found:
    seen: dict[object, Statement] = {}
    for s in view.statements:
        if s.handle.attr[3] != "output" or s.store.attr[1]:
            continue
        key = (s.handle, s.starts, s.store.attr[0], tuple(x.src[:2] for x in s.loops))
        if key in seen:
            yield s.path, f"stores what {seen[key].path} stores"
        seen[key] = s


def _fresh(view: View) -> Found:
    """Loads of memory that kernels store, before anything is stored there."""
    stored: set[Node] = set()
    for s in view.statements:
        bounds = [b for x in s.loops for b in x.src[:2]]
        for load in loads(*s.store.src[1:], *bounds):
            handle = load.src[0]
            mutable = handle.op == "buffer" and handle.attr[3] != "packed"
            if mutable and handle not in stored:
                yield s.path, f"loads {handle.attr[0]!r}, where nothing has been stored yet"
        stored.add(s.handle)


def _packs(view: View) -> Found:
    made = {p.buffer for p in view.program.packs}
    for load in (n for n in view.nodes if n.op == "load" and n.src[0].op == "buffer"):
        if load.src[0].attr[3] == "packed" and load.src[0] not in made:
            yield load, "reads a packed buffer that no pack makes"
    for pack in view.program.packs:
        name, extents, dtype, home = pack.buffer.attr
        where = f"pack {name}"
        if home != "packed":
            yield where, f"its home is {home}"
        if pack.value.dtype != dtype or set(pack.value.axes) - set(zip(pack.dims, extents)):
            yield where, f"{pack.value.type} does not fit {dict(zip(pack.dims, extents))}"
        for node in walk(pack.value):
            if node.op == "input" and node.attr[3] != "weight":
                yield where, f"reads the argument {node.attr[0]!r}, which is no constant"


def _lanes(view: View) -> Found:
    for loop in (x for x, _ in view.loops if x.attr[1] == "lane"):
        if any(n.op == "forall" for s in loop.src[2:] for n in walk(s)):
            yield loop, "a lane holds another loop"
        lo, hi = (simplify(b) for b in loop.src[:2])
        if lo.op == hi.op == "const":
            count = hi.attr[0] - lo.attr[0]
            if not 1 <= count <= MAX_LANES or count & (count - 1):
                yield loop, f"{count} lanes: a power of two up to {MAX_LANES} is wanted"


def _grids(view: View) -> Found:
    for loop, around in view.loops:
        inner = [x.attr[1] for x in around if x.attr[1] not in ("grid", "persistent")]
        if loop.attr[1] in ("grid", "persistent") and inner:
            yield loop, f"a grid inside a {inner[0]} loop"


def _arrivals(view: View) -> Found:
    """Loops whose last program goes on: around them is the grid alone, and what they store is
    scratch that only the programs of one tile share."""
    for loop, around in view.loops:
        if loop.attr[1] not in ("arrive", "share"):
            continue
        if any(x.attr[1] != "grid" for x in around):
            yield loop, "stands inside of more than a grid"
        if around and around[-1].src[2] is not loop:
            yield loop, "something of its program stands before it"
        stored = [s for s in view.statements if loop in s.loops]
        for s in stored:
            if s.handle.attr[3] != "scratch":
                yield s.path, "a part is stored as an output"
        handles = {s.handle for s in stored}
        for s in (s for s in view.statements if loop not in s.loops):
            used = handles & {n.src[0] for n in loads(*s.store.src[1:])}
            if used and not set(around) <= set(s.loops):
                yield s.path, "reads parts outside of the grid that stores them"


def _shares(view: View) -> Found:
    """Parts that are dealt out are those that the facts of their kernel tell; emitters go by these
    facts. Their loop is the first thing in the grid of its kernel."""
    for root in view.program.body:
        around, body = grid_of(root)
        facts = kernel_facts(root)
        dealt = facts.get("programs", 0) != 0
        first = body[0] if body and body[0].op == "forall" else None
        shared = first is not None and first.attr[1] == "share"
        if dealt != shared:
            yield root, "the fact programs and a loop bound to share come together"
        elif first is not None and shared:
            shares = Shares(*(facts.get(name, 0) for name in ("pieces", "programs", "shared")))
            parts = simplify(shares.parts(tile_of(around, facts.get("group", 0))))
            lo, hi = (simplify(b) for b in first.src[:2])
            if lo is not const(0, "int32") or hi is not parts:
                yield first, "has other parts than the facts of the kernel tell"


def _shadows(view: View) -> Found:
    """Loops around a loop, and folds around a fold that reads their states, have other axes."""
    for loop, around in view.loops:
        if loop.attr[0] in {x.attr[0] for x in around}:
            yield loop, f"a loop around it has the axis {loop.attr[0]!r} too"
    for fold in (n for n in view.nodes if n.op == "fold"):
        axis, names = fold.attr[:2]
        for inner in walk(*(fold.src[n] for n in scope_of(fold).body)):
            if inner.op == "fold" and inner.attr[0] == axis and inner.carries & set(names):
                yield inner, f"a fold around it has the axis {axis!r} too"


def _bounds_vary(view: View) -> Found:
    for loop, around in view.loops:
        lanes = {x.attr[0] for x in around if x.attr[1] == "lane"}
        for axis in sorted(lanes & {a for b in loop.src[:2] for a, _ in b.free}):
            yield loop, f"its bounds depend on the lane {axis!r}"
    for s in view.statements:
        lanes = {x.attr[0] for x in s.loops if x.attr[1] == "lane"}
        for fold in (n for n in walk(*s.store.src[1:]) if n.op == "fold" and lanes):
            for axis in sorted(lanes & {a for b in intervals(fold) for a, _ in b.free}):
                yield s.path, f"the bounds of a fold depend on the lane {axis!r}"


def _races(view: View) -> Found:
    """Iterations that run together store to places of their own, or to scratch of their own, or
    but one of them stores."""
    for s in view.statements:
        for loop in s.loops:
            axis, bind = loop.attr
            if bind == "serial" or axis in {a for x in s.starts for a, _ in x.free}:
                continue
            if simplify(loop.src[1] - loop.src[0]) is const(1, "int32"):
                continue
            if s.handle.attr[3] in ("scratch", "shared") and _private(view, s.handle, loop):
                continue
            if axis in _singled_out(s.store):
                continue
            yield s.path, f"every iteration of the {bind} loop over {axis!r} stores to one place"


def _singled_out(store: Node) -> set[str]:
    """The axes at one number of which alone something is stored."""
    _, masked = store.attr
    tests = conjuncts(store.src[-1]) if masked else ()
    pairs = (t.src for t in tests if t.attr[0] == "eq")
    return {a.attr[0] for a, b in pairs if a.op == "iota" and b.op == "const"}


def _private(view: View, handle: Node, loop: Node) -> bool:
    """Whether all loads of a buffer stand inside the loop."""
    return all(
        loop in s.loops
        for s in view.statements
        if any(n.src[0] is handle for n in loads(*s.store.src[1:]))
    )


def _carried(view: View) -> Found:
    """No iteration of a forall reads what another one stores, as far as addresses tell."""
    for s in view.statements:
        for load in loads(*s.store.src[1:]):
            for other in view.statements:
                if other.handle is not load.src[0]:
                    continue
                shared = [x for x in s.loops if x in other.loops]
                for loop in shared:
                    if _shifted(load, other.store, loop.attr[0]):
                        yield (
                            s.path,
                            (
                                f"loads {load.src[0].attr[0]!r} as another iteration of "
                                f"{loop.attr[0]!r} stores it"
                            ),
                        )


def _shifted(load: Node, store: Node, axis: str) -> bool:
    for at, own in zip(starts(load), starts(store)):
        if axis in own.names and at.names == own.names:
            distance = simplify(at - own) if at.dtype == own.dtype else at
            if distance.op == "const" and distance.attr[0] != 0:
                return True
    return False


TILE_ROWS: tuple[Row, ...] = (
    Row("TOP_LEVEL", "tile", "the body is a sequence of kernels, which hold none", _top_level),
    Row("KNOB", "tile", "a concrete program has no open knob", _knobs),
    Row("HANDLE", "tile", "inputs and buffers are only loaded and stored", _handles),
    Row("BUFFER", "tile", "a buffer has one declaration, an output's the output's own", _buffers),
    Row("STORED", "tile", "kernels store every output, and nothing packed", _stored),
    Row("COVERED", "tile", "stores reach both ends of every dimension of an output", _covered),
    Row("STORED_ONCE", "tile", "no two stores write the same elements of an output", _stored_once),
    Row("FRESH", "tile", "memory is stored before it is loaded", _fresh),
    Row("PACK", "tile", "packs make every packed buffer, from weights alone", _packs),
    Row("LANE", "tile", "a lane is the innermost loop and a power of two", _lanes),
    Row("GRID", "tile", "grid loops stand outside all others", _grids),
    Row("ARRIVE", "tile", "parts are scratch of one tile, merged behind them", _arrivals),
    Row("SHARE", "tile", "parts that are dealt out are those that facts tell", _shares),
    Row("SHADOW", "tile", "a loop's axis is not that of a loop around it", _shadows),
    Row("BOUNDS", "tile", "bounds are the same for all lanes", _bounds_vary),
    Row("RACE", "tile", "parallel iterations store to places of their own", _races),
    Row("CARRIED", "tile", "iterations of a forall do not read each other's stores", _carried),
)
