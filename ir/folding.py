"""Evaluating a fold: states through the steps of its intervals, sums of products at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autosched.ir.arrays import Named
from autosched.ir.bound import Bound, Env
from autosched.ir.footprint import depends_on, rebound
from autosched.ir.gather import Dim
from autosched.ir.node import Node, walk

if TYPE_CHECKING:
    from autosched.ir.evaluator import Evaluator


def run_fold(machine: Evaluator, node: Node, env: Env) -> tuple[Named, ...]:
    """The results of a fold at env: final states, then stacked outputs."""
    axis, names, n_intervals, _ = node.attr
    moved = {a: e for t in node.types for a, e in t.axes if a in rebound(node)}
    varied = {a for b in node.src[: 2 * n_intervals] for a, _ in b.free} & set(moved)
    if varied:
        raise ValueError(f"its bounds vary along {sorted(varied)}, where a state is read elsewhere")
    home = machine.bind_whole(moved, env, [*depends_on(node), *moved])
    fold = _Fold(machine, node, home, frozenset(moved))
    results = fold.run([machine.value(b, home) for b in node.src[: 2 * n_intervals]])
    back: dict[Dim, Named] = {}
    for a in moved:
        if a != axis and home[a].uid != env[a].uid:
            back[home[a].named.dims[0]] = env[a].named
    states = [machine.xp.index(x, back) if back else x for x in results[: len(names)]]
    stacked = []
    for parts, kind in zip(results[len(names) :], node.types[len(names) :]):
        got = _unstacked(machine, parts, fold.steps, env[axis].named, kind.dtype)
        stacked.append(machine.xp.index(got, back) if back else got)
    return (*states, *stacked)


def _unstacked(
    machine: Evaluator, parts: list[Named], steps: list[int], at: Named, dtype: str
) -> Named:
    """The stacked output read at `at`; steps that no interval holds have no value."""
    if not parts:
        return machine.xp.missing(at, dtype)
    dim = ("step", -1)
    where = machine.xp.positions(at, steps)
    return machine.xp.index(machine.xp.stack(parts, dim), {dim: where})


class _Fold:
    def __init__(self, machine: Evaluator, node: Node, env: Env, mixed: frozenset[str]) -> None:
        axis, names, n_intervals, _ = node.attr
        rest = node.src[2 * n_intervals :]
        self.machine, self.axis, self.mixed = machine, axis, mixed
        self.names: tuple[str, ...] = names
        self.inits = dict(zip(names, rest))
        self.yields = dict(zip(names, rest[len(names) :]))
        self.outs = rest[2 * len(names) :]
        self.sums = _sums(names, self.yields, self.outs)
        self.env = {k: v for k, v in env.items() if k != axis}
        self.axes = {n: kind.names for n, kind in zip(names, node.types)}
        self.homes = {
            n: {a: self.env[a] for a in own if a in self.env} for n, own in self.axes.items()
        }
        self.steps: list[int] = []

    def run(self, bounds: Sequence[Bound]) -> list[Any]:
        """The final states, then for every stacked output its values at `steps`."""
        machine = self.machine
        states = {n: self._full(n, machine.value(i, self.env).named) for n, i in self.inits.items()}
        stacks: list[list[Named]] = [[] for _ in self.outs]
        for low, high in zip(bounds[::2], bounds[1::2]):
            lo, hi = low.named, high.named
            steady = not lo.dims and not hi.dims
            first, last = machine.xp.extremes(lo)[0], machine.xp.extremes(hi)[1]
            level = max(low.level, high.level)
            alone = self.sums if steady and first < last else {}
            for name, term in alone.items():
                span = machine.interval(self.axis, first, last, level)
                states[name] = self._add_all(name, states[name], term, span)
            active = {n: y for n, y in self.yields.items() if n not in alone}
            if first >= last or not (active or self.outs):
                continue
            span = machine.interval(self.axis, first, last, level)
            for position in range(last - first):
                with machine.frame() as inside:
                    step = machine.step(span, position, inside)
                    inner = self._bind(states, step)
                    fresh = {n: machine.value(y, inner).named for n, y in active.items()}
                    for stack, out in zip(stacks, self.outs):
                        stack.append(machine.value(out, inner).named)
                if not steady:
                    fresh = {
                        n: machine.xp.choose(step.named, lo, hi, x, states[n])
                        for n, x in fresh.items()
                    }
                states.update({n: self._full(n, x) for n, x in fresh.items()})
                self.steps.append(first + position)
        return [*states.values(), *stacks]

    def _full(self, name: str, x: Named) -> Named:
        """A state with the dimensions of all its axes, also of those it does not vary along yet."""
        homes = [self.env[a].named for a in self.axes[name] if a in self.env]
        sizes = {d: n for h in homes for d, n in zip(h.dims, h.data.shape)}
        absent = tuple(d for d in sizes if d not in x.dims)
        if not absent:
            return x
        return self.machine.xp.spread(x, x.dims + absent, sizes | dict(zip(x.dims, x.data.shape)))

    def _bind(self, states: dict[str, Named], step: Bound) -> dict[str, Bound]:
        inner = {**self.env, self.axis: step}
        for name, named in states.items():
            state = self.machine.bound(named, step.level)
            inner["state " + name] = replace(state, at=self.homes[name], mixed=self.mixed)
        return inner

    def _add_all(self, name: str, init: Named, term: Node, span: Bound) -> Named:
        """init plus the sum of `term` over the steps, as one contraction."""
        dtype = self.inits[name].dtype
        env = {**self.env, self.axis: span}
        total = self.machine.sum_of(term, dtype, env, (self.axis,))
        return self.machine.xp.apply("add", dtype, [init, total])


def _sums(names: Sequence[str], yields: dict[str, Node], outs: Sequence[Node]) -> dict[str, Node]:
    """States that only ever add a term free of states to themselves, with that term."""
    found: dict[str, Node] = {}
    for name in names:
        step = yields[name]
        if step.op != "map" or step.attr[0] != "add":
            continue
        for one, term in (step.src, step.src[::-1]):
            own = one.op == "carry" and one.attr[0] == name
            if own and not term.carries & set(names):
                found[name] = term
    readers = [y for n, y in yields.items() if n not in found] + list(outs)
    read = {n.attr[0] for n in walk(*readers) if n.op == "carry"}
    return {n: t for n, t in found.items() if n not in read}
