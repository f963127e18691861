"""Partition: which values are fused, that equal work is one task, and that the steps mean the
graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graphs import (
    Model,
    additive_mask,
    attention,
    embedding,
    encoder_layer,
    gelu,
    rope,
    run_graph,
    run_partition,
    softmax,
    swiglu,
    value,
)  # fmt: skip

from autosched.examples import make_example
from autosched.ir.count import factors
from autosched.ir.frontend.onnx import load_model
from autosched.ir.fusion import Options
from autosched.ir.graph import Island, ModelGraph
from autosched.ir.node import Node
from autosched.ir.ops import exp, input_, iota, map_, max_, reaxis, rename, sum_, tanh
from autosched.ir.partition import IslandStep, KernelStep, Partition, partition
from autosched.ir.target import Target, parse_target
from autosched.ir.views import walk_values

# A target that is the same wherever the tests run.
CPU = replace(
    parse_target("cpu"), cores=2, l1_bytes=32 << 10, l2_bytes=1 << 20, l3_bytes=32 << 20,
    dram_gbs=24.0, peak_gflops=(("float32", 160.0),),
)  # fmt: skip


def check(graph: ModelGraph, model: Model, target: Target = CPU, **options: object) -> Partition:
    """The partition, after its steps have given what the graph means."""
    part = partition(graph, target, Options(**options))  # type: ignore[arg-type]
    expected = run_graph(graph, model.arrays)
    got = run_partition(part, model.arrays)
    for name, data in expected.items():
        assert np.allclose(got[name].reshape(data.shape), data, 1e-9, 1e-9, equal_nan=True), name
    return part


def names(part: Partition) -> list[str]:
    """Kinds of the kernels in the order of their steps, without sizes."""
    out = []
    for step in part.steps:
        assert isinstance(step, KernelStep)
        out.append(part.task(step.task).public_name.rpartition("_")[0])
    return out


def contractions(part: Partition) -> list[int]:
    """How many contractions each task has."""
    return [sum(factors(n) is not None for n in walk_values(*t.program.body)) for t in part.tasks]


# ---- what is fused -----------------------------------------------------------------------------


def test_linear_gelu_is_one_task_and_a_wide_mlp_two() -> None:
    m = Model()
    x = m.arg("x", {"s": 128, "c": 384})
    h, f = m.linear(x, "c", 1536)
    y, n = m.linear(gelu(h), f, 384)
    part = partition(m.graph({"y": (rename(y, {n: "c"}) + x, ("s", "c"))}), CPU)
    assert names(part) == ["gemm_bias_gelu", "gemm_bias_residual"]
    assert part.tasks[0].public_name == "gemm_bias_gelu_128x1536x384"
    assert [s.inputs[0] for s in part.steps] == ["x", "t0"]
    assert part.tasks[0].flops >= 2 * 128 * 1536 * 384


@pytest.mark.parametrize(("length", "size", "heads"), [(128, 32, 12), (4096, 64, 2), (24, 8, 2)])
def test_attention_is_one_task(length: int, size: int, heads: int) -> None:
    m = Model()
    q, k, v = (m.arg(n, {"s": length, f"c{n}": heads * size}) for n in "qkv")
    mask = additive_mask(m, "s", length)
    o, h, e = attention(m, q, k, v, ("cq", "ck", "cv"), "s", heads, mask)
    i = next(a for a in o.names if a not in (h, e))
    graph = m.graph({"o": (o, (i, h, e))})
    part = check(graph, m) if length < 1000 else partition(graph, CPU)
    assert contractions(part)[-1] == 2
    assert len(part.tasks) <= 2  # the mask may be a kernel of its own
    program = part.tasks[-1].program
    assert not any(n.op == "reaxis" for n in walk_values(*program.body))
    query = next(n for n in program.inputs if n.dtype == "float32")
    assert tuple(e for _, e in query.attr[1]) == (length, heads, size)


def test_attention_over_keys_beyond_the_caches_is_not_fused() -> None:
    m = Model()
    q, k, v = (m.arg(n, {"s": 1024, f"c{n}": 256}) for n in "qkv")
    o, h, e = attention(m, q, k, v, ("cq", "ck", "cv"), "s", 2)
    i = next(a for a in o.names if a not in (h, e))
    graph = m.graph({"o": (o, (i, h, e))})
    assert max(contractions(partition(graph, CPU))) == 2
    small = replace(CPU, l1_bytes=1 << 12, l2_bytes=1 << 15, l3_bytes=1 << 16)
    assert max(contractions(partition(graph, small))) == 1


def test_grouped_heads_and_a_nan_guard_fuse_too() -> None:
    m = Model()
    q = m.arg("q", {"s": 32, "cq": 64})
    k, v = (m.arg(n, {"s": 32, f"c{n}": 16}) for n in "kv")
    o, h, e = attention(m, q, k, v, ("cq", "ck", "cv"), "s", 8, key_heads=2)
    i = next(a for a in o.names if a not in (h, e))
    part = check(m.graph({"o": (o, (i, h, e))}), m)
    assert contractions(part) == [2]


def test_norm_is_one_task_apart_from_the_gemm_before_it() -> None:
    m = Model()
    x = m.arg("x", {"s": 128, "c": 256})
    y, n = m.linear(x, "c", 256)
    y = m.layernorm(rename(y, {n: "c"}) + x, "c")
    z, last = m.linear(y, "c", 256)
    graph = m.graph({"z": (z, ("s", last))})
    assert names(check(graph, m)) == ["gemm_bias_residual", "layernorm", "gemm_bias"]
    joined = check(graph, m, rows_after_contraction=True)
    assert len(joined.steps) == 2


def test_gate_and_up_are_one_task() -> None:
    m = Model()
    x = m.arg("x", {"s": 64, "c": 128})
    y = swiglu(m, m.rmsnorm(x, "c"), "c", 352) + x
    part = check(m.graph({"y": (y, ("s", "c"))}), m)
    assert names(part) == ["rmsnorm", "gated_gemm_silu", "gemm_residual"]
    assert contractions(part) == [0, 2, 1]


def test_projections_of_one_input_are_one_task() -> None:
    m = Model()
    x = m.arg("x", {"s": 128, "c": 384})
    outs = {f"y{n}": (lin[0], ("s", lin[1])) for n in range(3) if (lin := m.linear(x, "c", 384))}
    part = check(m.graph(outs), m)
    assert names(part) == ["gemm_bias_x3"]
    space = {frozenset(a for s in n.src for a in s.free)
             for n in walk_values(*part.tasks[0].program.body) if factors(n)}  # fmt: skip
    assert len(space) == 1  # one nest can compute all three
    apart = check(m.graph(outs), m, siblings=False)
    assert names(apart) == ["gemm_bias"] * 3 and [t.count for t in apart.tasks] == [3]


def test_rows_of_a_batch_are_rows() -> None:
    tasks = []
    for dims in ({"b": 8, "s": 16, "c": 64}, {"s": 128, "c": 64}):
        m = Model()
        y, n = m.linear(m.arg("x", dims), "c", 96)
        rows = [a for a in dims if a != "c"]
        tasks.append(check(m.graph({"y": (tanh(y), (*rows, n))}), m).tasks[0])
    assert tasks[0].key == tasks[1].key and tasks[0].program == tasks[1].program


def test_shared_mask_is_stored_once_and_tables_are_constant() -> None:
    m = Model()
    angle = m.weight({"s": 32, "a": 4})
    table = map_("cos", angle)
    x = m.arg("x", {"s": 32, "c": 16})
    keep = additive_mask(m, "s", 32)
    outs = {}
    for n in range(2):
        y, col = m.linear(x, "c", 16)
        y = rope(m, y, "s", col, 2, table, table)
        outs[f"y{n}"] = (sum_(col, y * m.weight({col: 16, f"o{n}": 200})) + keep, ("s", f"o{n}"))
    part = check(m.graph(outs), m)
    first = {s.task: s for s in part.steps if isinstance(s, KernelStep)}
    constant = [s for s in first.values() if s.constant]
    assert len(constant) == 1 and len(constant[0].inputs) == 1
    readers = [s for s in part.steps if constant[0].outputs[0] in s.inputs]
    assert len(readers) >= 2


def test_equal_layers_are_one_task_each() -> None:
    m = Model()
    x, col = embedding(m, "s", 32, 50, 48)
    x = m.layernorm(x, col)
    mask = additive_mask(m, "s", 32)
    for _ in range(3):
        x = encoder_layer(m, x, "s", col, 4, mask)
    part = check(m.graph({"x": (x, ("s", col))}), m)
    counts = {t.public_name.rpartition("_")[0]: t.count for t in part.tasks}
    assert counts["attention"] == 3 and len(part.tasks) <= 8
    assert sum(t.count for t in part.tasks) == len(part.steps)


def test_tables_read_by_tokens_are_fused_with_the_norm_that_follows() -> None:
    m = Model()
    x, col = embedding(m, "s", 32, 50, 48)
    part = check(m.graph({"y": (m.layernorm(x, col), ("s", col))}), m)
    assert names(part) == ["gather_layernorm"]


def test_softmax_alone_and_reductions_of_everything() -> None:
    m = Model()
    x = m.arg("x", {"r": 40, "c": 30})
    total = sum_(("r", "c"), x * x)
    part = check(m.graph({"p": (softmax(x, "c"), ("r", "c")), "n": (total, ())}), m)
    assert names(part)[0] == "softmax" and part.values["n"].extents == ()


# ---- memory ------------------------------------------------------------------------------------


def test_output_that_is_a_view_is_stored_by_its_producer() -> None:
    m = Model()
    y, n = m.linear(m.arg("x", {"s": 16, "c": 24}), "c", 24)
    heads = reaxis(y, {n: iota("h", 4) * 6 + iota("d", 6)})
    part = check(m.graph({"y": (heads, ("s", "h", "d"))}), m)
    assert len(part.steps) == 1 and part.values["y"].extents == (16, 24)
    m = Model()
    y, n = m.linear(m.arg("x", {"s": 16, "c": 24}), "c", 24)
    heads = reaxis(y, {n: iota("h", 4) * 6 + iota("d", 6)})
    part = check(m.graph({"y": (heads, ("h", "s", "d"))}), m)
    assert part.values["y"].extents == (4, 16, 6)


def test_output_constant_along_an_axis_and_output_that_is_an_input() -> None:
    m = Model()
    x = m.arg("x", {"c": 6})
    row = sum_("c", x)
    wide = replace(value("w", x, ("c",)), dims=("r", "c"), extents=(3, 6), shape=(3, 6))
    graph = replace(m.graph({"x2": (x, ("c",)), "s": (row, ())}), outputs=(
        value("x2", x, ("c",)), wide, value("s", row, ()), value("s2", row * 2.0, ()),
    ))  # fmt: skip
    check(graph, m)


def test_attention_output_is_laid_out_for_the_projection_after_it() -> None:
    m = Model()
    x = m.arg("x", {"s": 64, "c": 64})
    part = check(m.graph({"y": (encoder_layer(m, x, "s", "c", 4, None), ("s", "c"))}), m)
    step = next(s for s in part.steps if "attention" in part.task(s.task).public_name)
    assert part.values[step.outputs[0]].extents == (64, 4, 16)


# ---- order, islands ----------------------------------------------------------------------------


def test_no_cycle_through_an_island() -> None:
    """x feeds an island whose result is added to a norm of x: they must not be one group."""
    m = Model()
    x = m.arg("x", {"s": 32, "c": 16})
    y = exp(x)
    total = sum_("c", y)
    node = input_("island out", {"s": 32, "c": 16})
    island = Island("odd", (value("island in", total, ("s",)),), (node,), ("Odd",), b"")
    z = (y + node) / max_("c", y + node)
    graph = m.graph({"z": (z, ("s", "c"))}, (island,))

    def odd(a: np.ndarray) -> tuple[np.ndarray]:
        return (np.tile(a.reshape(32, 1), (1, 16)) * 2,)

    part = partition(graph, CPU)
    at = next(n for n, s in enumerate(part.steps) if isinstance(s, IslandStep))
    assert part.steps[at].inputs == ("island in",) and 0 < at < len(part.steps) - 1
    expected = run_graph(graph, m.arrays, {"odd": odd})
    got = run_partition(part, m.arrays, {"odd": odd})
    assert np.allclose(got["z"], expected["z"])


def test_deep_chains_of_maps_under_a_view() -> None:
    m = Model()
    y = m.arg("x", {"s": 4, "c": 6})
    for _ in range(2000):
        y = y * 0.5
    y = reaxis(y, {"c": iota("a", 2) * 3 + iota("b", 3)})
    for _ in range(2000):
        y = y + 1.0
    part = partition(m.graph({"y": (y, ("s", "a", "b"))}), CPU)
    assert len(part.steps) == 1 and part.tasks[0].program.outputs[0].extents == (24,)


def test_a_narrow_mlp_is_a_chain_only_if_asked() -> None:
    m = Model()
    x = m.arg("x", {"s": 64, "c": 16})
    h, f = m.linear(x, "c", 128)
    y, n = m.linear(gelu(h), f, 16)
    graph = m.graph({"y": (y, ("s", n))})
    assert contractions(check(graph, m)) == [1, 1]
    assert contractions(check(graph, m, chains_of_weights=True)) == [2]


def test_steps_are_deterministic() -> None:
    def build() -> Partition:
        m = Model()
        x = m.arg("x", {"s": 32, "c": 48})
        return partition(m.graph({"y": (encoder_layer(m, x, "s", "c", 4, None), ("s", "c"))}), CPU)

    assert build() == build()


# ---- random graphs -----------------------------------------------------------------------------

_UNARY = (tanh, lambda x: exp(x * 0.1), lambda x: x * 0.5, lambda x: 1.0 - x)


def _random_model(seed: int) -> tuple[Model, ModelGraph]:
    """A DAG of maps, views, reduces and contractions over few small axes."""
    m = Model(seed)
    rng = np.random.default_rng(seed)
    sizes = {"a": 2, "b": 3, "c": 4, "d": 6}
    dims = [dict(rng.permutation(list(sizes.items()))[: rng.integers(2, 4)]) for _ in range(3)]
    pool: list[Node] = [
        m.arg(f"x{n}", {k: int(v) for k, v in d.items()}) for n, d in enumerate(dims)
    ]
    pool.append(m.weight({"d": 6, "c": 4}))
    for _ in range(int(rng.integers(6, 16))):
        x = pool[rng.integers(len(pool))]
        y = pool[rng.integers(len(pool))]
        kind = int(rng.integers(7))
        if kind == 0:
            new = _UNARY[rng.integers(len(_UNARY))](x)
        elif kind == 1:
            new = x + y
        elif kind == 2 and x.names:
            new = (sum_ if rng.integers(2) else max_)(str(rng.choice(x.names)), x)
        elif kind == 3 and set(x.names) & set(y.names):
            new = sum_(str(rng.choice(sorted(set(x.names) & set(y.names)))), x * y)
        elif kind == 4 and {"c", "d"} & set(x.names):
            new = _view(x, rng)
        elif kind == 5 and x.names:
            axis = str(rng.choice(x.names))
            new = x - sum_(axis, x) / float(str(x.extent(axis)))
        else:
            new = x * y
        if len(new.names) <= 4:
            pool.append(new)
    picked = [pool[n] for n in rng.choice(np.arange(4, len(pool)), 2)] + [pool[-1]]
    outs = {f"y{n}": (node, tuple(rng.permutation(node.names))) for n, node in enumerate(picked)}
    return m, m.graph({k: (n, tuple(map(str, d))) for k, (n, d) in outs.items()})


def _view(x: Node, rng: np.random.Generator) -> Node:
    if "d" in x.names and "a" not in x.names and "b" not in x.names and rng.integers(2):
        return reaxis(x, {"d": iota("a", 2) * 3 + iota("b", 3)})
    if {"a", "b"} <= set(x.names) and "d" not in x.names:
        return reaxis(x, {"a": iota("d", 6) // 3, "b": iota("d", 6) % 3})
    axis = "d" if "d" in x.names else "c"
    size = int(str(x.extent(axis)))
    kind = int(rng.integers(3))
    index = [(iota(axis, size) + 1) % size, size - 1 - iota(axis, size), iota(axis, size) // 2]
    return reaxis(x, {axis: index[kind]})


TARGETS = {
    "plain": CPU,
    "no caches": replace(CPU, cores=64, l1_bytes=16, l2_bytes=64, l3_bytes=64),
    "slow memory": replace(CPU, cores=1, dram_gbs=1e-4, l1_bytes=16),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", range(40))
def test_steps_mean_the_graph(seed: int, target: str) -> None:
    m, graph = _random_model(seed)
    for options in ({}, {"rows_after_contraction": True, "max_contractions": 9}):
        part = check(graph, m, TARGETS[target], **options)
        ready = {*m.inputs, *m.weights}
        for step in part.steps:
            assert ready >= set(step.inputs)
            ready |= set(step.outputs)


# ---- the examples ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny_encoder", "tiny_decoder"])
def test_examples(name: str, tmp_path: Path) -> None:
    shape = (2, 12)
    path = make_example(name, tmp_path / "model.onnx")
    graph = load_model(path, {"input_ids": shape, "attention_mask": shape})
    m = Model()
    keep = np.ones(shape, np.int64)
    keep[1, 7:] = 0
    m.arrays = {"input_ids": m.rng.integers(0, 1000, shape), "attention_mask": keep}
    m.arrays |= {w.name: w.load() for w in graph.weights.values()}
    part = check(graph, m)
    assert sum("attention" in t.public_name for t in part.tasks) == 1
    assert all(t.count in (1, 2, 4) for t in part.tasks)
    check(graph, m, rows_after_contraction=True, chains_of_weights=True, maps_into_consumers=True)


@pytest.mark.slow
def test_tasks_of_the_examples_at_full_size(tmp_path: Path) -> None:
    """What is tuned for the two models of the demo; a change here changes every result."""
    found = {}
    for name, batch in (("encoder", 1), ("decoder", 8)):
        path = make_example(name, tmp_path / f"{name}.onnx")
        shape = (batch, 128)
        graph = load_model(path, {"input_ids": shape, "attention_mask": shape})
        found[name] = {t.public_name: t.count for t in partition(graph, CPU).tasks}
    assert found["encoder"] == {
        "gather_layernorm_128x384": 1, "gemm_bias_x3_128x384x384": 6, "map_cast_sub_mul_128": 1,
        "attention_12x128x128x32": 6, "gemm_bias_residual_128x384x384": 6,
        "layernorm_128x384": 12, "gemm_bias_gelu_128x1536x384": 6,
        "gemm_bias_residual_128x384x1536": 6, "gemm_bias_tanh_1x384x384": 1,
    }  # fmt: skip
    assert found["decoder"] == {
        "gather_rmsnorm_1024x512": 1, "gemm_1024x512x512": 4, "gemm_x2_1024x128x512": 4,
        "map_mul_eq_neg_where_8x128x8x2x32": 4, "map_mul_eq_neg_where_8x128x2x2x32": 4,
        "map_ne_1024_bool": 1, "attention_16x512x128x64": 4, "gemm_residual_1024x512x512": 4,
        "rmsnorm_1024x512": 8, "gated_gemm_silu_1024x1408x512": 4,
        "gemm_residual_1024x512x1408": 4, "gemm_1024x32000x512": 1,
    }  # fmt: skip
