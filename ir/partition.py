"""A ModelGraph and a target in, its tasks out: what to tune, and in which order it all runs.

The DAG is cut into stages (`stages`), the stages are grouped (`fusion`), every group becomes a
canonical program (`canonical`), and equal programs are one task with a count. What groups pass
to each other are values in memory with an order of their axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import networkx as nx

from autosched.ir.canonical import Canonical, canonical
from autosched.ir.count import count, nbytes
from autosched.ir.fusion import Groups, Options, fuse
from autosched.ir.gains import recompute_us, store_us
from autosched.ir.graph import GraphValue, ModelGraph
from autosched.ir.naming import describe, public_name
from autosched.ir.node import Node, Output, Program
from autosched.ir.ops import const, input_
from autosched.ir.prepare import prepare
from autosched.ir.stages import (
    Root,
    Stage,
    expand,
    has_special,
    inlined,
    leaf_bytes,
    stages,
    strip_views,
)  # fmt: skip
from autosched.ir.target import Target
from autosched.ir.views import read, sink, walk_values


@dataclass(frozen=True)
class Task:
    """One kernel to tune: a canonical algebra program that `count` steps of the model run.

    flops: a multiply-add is two; bytes: inputs and outputs once; doc: what it computes, one line.
    """

    key: str
    program: Program
    count: int
    flops: int
    bytes: int
    public_name: str
    doc: str


@dataclass(frozen=True)
class KernelStep:
    """One run of a task. inputs: names of values and weights, in the order of program.inputs;
    outputs: names of values, in the order of program.outputs; constant: all of its inputs are
    weights or made of weights, so that it need not run for each call."""

    task: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constant: bool = False


@dataclass(frozen=True)
class IslandStep:
    """One run of an island; inputs and outputs are names of values."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class ValueInfo:
    """A tensor between steps, row-major in `dims`; `extents` are those of `dims`, `shape` is
    what the model says (for inputs and outputs) and has as many elements."""

    dtype: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    extents: tuple[int, ...]


Step = KernelStep | IslandStep


@dataclass(frozen=True)
class Partition:
    """tasks in the order of their first step; steps in an order in which they can run; values:
    every tensor that is no weight, by name: inputs, what steps pass on, outputs."""

    tasks: tuple[Task, ...]
    steps: tuple[Step, ...]
    values: Mapping[str, ValueInfo]

    def task(self, key: str) -> Task:
        return next(t for t in self.tasks if t.key == key)


DEFAULT = Options()


def partition(graph: ModelGraph, target: Target, options: Options = DEFAULT) -> Partition:
    """The tasks and steps of a model on a target. Weights stay inputs of kind "weight" in the
    programs of the tasks, so that a schedule may pack them."""
    roots = _roots(graph)
    groups, made = _grouped(graph, roots, target, options)
    if options.siblings:
        _join_siblings(groups, roots, options)
    return _assembled(graph, roots, groups, made)


# ---- roots -------------------------------------------------------------------------------------


def _roots(graph: ModelGraph) -> tuple[Root, ...]:
    """What must be stored: outputs of the model and inputs of its islands."""
    asked: list[GraphValue] = [*graph.outputs]
    for island in graph.islands:
        asked.extend(v for v in island.inputs if not _is_stored(v))
    nodes = prepare([v.node for v in asked])
    return tuple(
        strip_views(Root(v.name, node, v.dims, v.extents, v.shape)) for v, node in zip(asked, nodes)
    )


def _is_stored(value: GraphValue) -> bool:
    """Whether a value is an input, or another island's output, in its own memory order."""
    node = value.node
    return node.op == "input" and tuple(a for a, _ in node.attr[1]) == value.dims


def _island_inputs(graph: ModelGraph, roots: Sequence[Root]) -> list[tuple[str, ...]]:
    """For each island the names of the values that it reads."""
    names = {r.name for r in roots}
    return [
        tuple(v.name if v.name in names else str(v.node.attr[0]) for v in island.inputs)
        for island in graph.islands
    ]


# ---- grouping ----------------------------------------------------------------------------------


def _grouped(
    graph: ModelGraph, roots: Sequence[Root], target: Target, options: Options
) -> tuple[Groups, tuple[Stage, ...]]:
    """Groups of stages; values that several groups would compute again are stages too, and
    operands that are cheaper computed again are none."""
    extra: dict[Node, None] = {}
    never: dict[Node, None] = {}
    while True:
        made = stages(roots, extra, never)
        groups = Groups(made, _dependences(graph, roots, made), target)
        fuse(groups, options)
        shared = [n for n in _shared(groups) if n not in extra and n not in never]
        cheap = [n for n in _cheap(groups, target) if n not in never]
        if not shared and not cheap:
            return groups, made
        extra |= dict.fromkeys(shared)
        never |= dict.fromkeys(cheap)
        extra = {n: None for n in extra if n not in never}


def _dependences(graph: ModelGraph, roots: Sequence[Root], made: Sequence[Stage]) -> nx.DiGraph:
    """Stages by index and islands by -1 - n, with an edge from a producer to each consumer."""
    out = nx.DiGraph()
    out.add_nodes_from(range(len(made)))
    maker = {root.name: s.index for s in made for root in s.roots}
    for n, island in enumerate(graph.islands):
        out.add_node(-1 - n)
        maker |= {str(node.attr[0]): -1 - n for node in island.outputs}
    for stage in made:
        out.add_edges_from((p, stage.index) for p in sorted(set(stage.sources.values())))
        leaves = (str(v.attr[0]) for v in stage.reads if v not in stage.sources)
        out.add_edges_from((maker[a], stage.index) for a in leaves if maker.get(a, 0) < 0)
    for n, names in enumerate(_island_inputs(graph, roots)):
        out.add_edges_from((maker[a], -1 - n) for a in names if a in maker)
    return out


def _shared(groups: Groups) -> list[Node]:
    """Maps that more than one group would compute for itself and that are worth storing: they
    call special functions, or read more bytes than they make. Only the outermost of them."""
    stored = {s.node: s.node for s in groups.stages}
    users: dict[Node, set[int]] = {}
    above: dict[Node, set[Node]] = {}
    for stage in groups.stages:
        for node in inlined(stage.node, stored):
            users.setdefault(node, set()).add(groups.group_of[stage.index])
    worth = {n for n, found in users.items() if len(found) > 1 and _worth_storing(n, stored)}
    for node in worth:
        for below in inlined(node, stored):
            above.setdefault(below, set()).add(node)
    return [n for n in users if n in worth and not above.get(n)]


def _worth_storing(node: Node, stored: Mapping[Node, Node]) -> bool:
    if not node.axes:
        return False
    handles = {n: _handle(n) for n in stored if n.axes}
    (local,) = sink((expand(node, handles),))
    special = any(has_special(n) for n in walk_values(local))
    return special or leaf_bytes(local) > nbytes(node)


def _handle(node: Node) -> Node:
    return input_(f"value {id(node)}", dict(node.free), node.dtype)


def _cheap(groups: Groups, target: Target) -> list[Node]:
    """Stages of maps alone that would be a kernel of their own in every call, but cost less
    computed again."""
    out = []
    for stage in groups.stages:
        alone = len(groups.members[groups.group_of[stage.index]]) == 1
        constant = stage.index in groups.constant
        if stage.loops or stage.roots or constant or not alone:
            continue
        users = [groups.stages[u] for u in groups.graph.successors(stage.index) if u >= 0]
        if recompute_us(stage, users, target) <= store_us(stage.node, target):
            out.append(stage.node)
    return out


# ---- programs of groups ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kernel:
    """A group as a program; `reads` are names of values, `stores` (name, stage) in order."""

    form: Canonical
    stores: tuple[tuple[str, Stage, Root | None], ...]

    @property
    def reads(self) -> tuple[str, ...]:
        return self.form.order


def _names(stages: Sequence[Stage], taken: Iterable[str]) -> dict[int, str]:
    """A name for the value of each stage: its root's, or a new one."""
    used = set(taken)
    out: dict[int, str] = {}
    n = 0
    for stage in stages:
        if stage.roots:
            out[stage.index] = stage.roots[0].name
            continue
        while f"t{n}" in used:
            n += 1
        out[stage.index] = f"t{n}"
        n += 1
    return out


def _stored_handles(stages: Sequence[Stage], names: Mapping[int, str]) -> dict[Node, Node]:
    """For the node of each stage the input through which another group reads it."""
    out: dict[Node, Node] = {}
    for stage in stages:
        output = _output("", stage, stage.roots[0] if stage.roots else None)
        dims = dict(zip(output.dims, output.extents))
        handle = input_(names[stage.index], dims, stage.node.dtype)
        # A root may be stored with axes along which it is constant: they are read anywhere.
        spare = {a: const(0, "int32") for a in dims if a not in stage.node.names}
        out[stage.node] = read(handle, spare)
    return out


def _kernel(
    groups: Groups, group: int, names: Mapping[int, str], handles: Mapping[Node, Node]
) -> _Kernel:
    members = groups.of(group)
    inside = {s.node for s in members}
    table = {node: handle for node, handle in handles.items() if node not in inside}
    needed = groups.needed_outside(members)
    stores: list[tuple[str, Stage, Root | None]] = []
    for stage in members:
        if stage.roots:
            stores.extend((root.name, stage, root) for root in stage.roots)
        elif stage.index in needed:
            stores.append((names[stage.index], stage, None))
    body = tuple(expand(stage.node, table) for _, stage, _ in stores)
    outputs = tuple(_output(name, stage, root) for name, stage, root in stores)
    inputs = tuple(n for n in walk_values(*body) if n.op == "input")
    return _Kernel(canonical(Program("algebra", inputs, outputs, body)), tuple(stores))


def _output(name: str, stage: Stage, root: Root | None) -> Output:
    if root is not None:
        return Output(name, root.dims, stage.node.dtype, root.extents)
    sizes = dict(stage.node.free)
    return Output(name, stage.dims, stage.node.dtype, tuple(sizes[a] for a in stage.dims))


def _join_siblings(groups: Groups, roots: Sequence[Root], options: Options) -> None:
    """Groups with a contraction each and equal programs over the same values, which differ in
    weights alone, become one: Q, K and V."""
    names = _names(groups.stages, ())
    handles = _stored_handles(groups.stages, names)
    alike: dict[tuple[Program, tuple[str, ...]], list[int]] = {}
    for group in sorted(groups.members):
        if group < 0 or groups.contractions((group,)) != 1:
            continue
        form = _kernel(groups, group, names, handles).form
        values = tuple(
            name for name, node in zip(form.order, form.program.inputs) if node.attr[3] == "arg"
        )
        weights = any(node.attr[3] == "weight" for node in form.program.inputs)
        if values and weights:
            alike.setdefault((form.program, values), []).append(group)
    for found in alike.values():
        for n in range(0, len(found), options.max_siblings):
            some = found[n : n + options.max_siblings]
            if len(some) > 1 and groups.joinable(some):
                groups.join(some)


# ---- assembly ----------------------------------------------------------------------------------


def _assembled(
    graph: ModelGraph, roots: Sequence[Root], groups: Groups, made: Sequence[Stage]
) -> Partition:
    values = {str(n.attr[0]): _info(n) for n in graph.inputs}
    for island in graph.islands:
        values |= {str(n.attr[0]): _info(n) for n in island.outputs}
    taken = {*values, *graph.weights, *(r.name for r in roots)}
    names = _names(made, taken)
    handles = _stored_handles(made, names)
    steps: list[Step] = []
    runs: dict[Program, list[int]] = {}
    keys: dict[Program, str] = {}
    order = nx.lexicographical_topological_sort(
        groups.quotient, key=lambda g: (min(abs(i) for i in groups.members[g]), g)
    )
    reads = _island_inputs(graph, roots)
    for group in order:
        if group < 0:
            island = graph.islands[-1 - group]
            outputs = tuple(str(n.attr[0]) for n in island.outputs)
            steps.append(IslandStep(island.name, reads[-1 - group], outputs))
            continue
        kernel = _kernel(groups, group, names, handles)
        for (name, _, root), output in zip(kernel.stores, kernel.form.program.outputs):
            values[name] = _stored_info(kernel, name, root, output)
        program = kernel.form.program
        keys.setdefault(program, program.key)
        runs.setdefault(program, []).append(len(steps))
        constant = groups.members[group][0] in groups.constant
        outputs = tuple(name for name, _, _ in kernel.stores)
        steps.append(KernelStep(keys[program], kernel.reads, outputs, constant))
    tasks = [_task(program, keys[program], len(at)) for program, at in runs.items()]
    return Partition(_distinct(tasks), tuple(steps), values)


def _distinct(tasks: Sequence[Task]) -> tuple[Task, ...]:
    """The tasks with public names that differ: the second of a name gets _2."""
    given: dict[str, int] = {}
    out = []
    for task in tasks:
        n = given[task.public_name] = given.get(task.public_name, 0) + 1
        name = task.public_name if n == 1 else f"{task.public_name}_{n}"
        out.append(replace(task, public_name=name))
    return tuple(out)


def _info(node: Node) -> ValueInfo:
    _, dims, dtype, _ = node.attr
    extents = tuple(e for _, e in dims)
    return ValueInfo(dtype, extents, tuple(a for a, _ in dims), extents)


def _stored_info(kernel: _Kernel, name: str, root: Root | None, output: Output) -> ValueInfo:
    stage = next(s for n, s, _ in kernel.stores if n == name)
    natural = _output(name, stage, root)
    extents = tuple(int(str(e)) for e in natural.extents)
    shape = extents if root is None else root.shape
    if math.prod(extents) != math.prod(int(str(e)) for e in output.extents):
        raise AssertionError(f"{name}: the canonical program stores another number of elements")
    return ValueInfo(natural.dtype, shape, natural.dims, extents)


def _task(program: Program, key: str, times: int) -> Task:
    work = count(program)
    name = public_name(program)
    return Task(key, program, times, work.flops, work.bytes, name, describe(program))
