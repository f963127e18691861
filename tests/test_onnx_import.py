"""The ONNX importer: whole models against onnxruntime, the form of the algebra, islands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models import (
    imported,
    load_model,
    maps_of,
    nodes_of,
    onnxruntime_of,
    parsed,
    run_graph,
    with_weights,
)

from autosched.examples import example_inputs, make_example
from autosched.ir.graph import ModelError


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def same(model: onnx.ModelProto, rtol: float = 1e-5, **feed: np.ndarray) -> None:
    graph = imported(model)
    want, got = onnxruntime_of(model, feed), run_graph(graph, feed)
    for name, array in want.items():
        assert got[name].shape == array.shape
        np.testing.assert_allclose(got[name], array, rtol=rtol, atol=1e-6)


# ---- whole models -----------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", ["tiny_encoder", "tiny_decoder", "encoder", "decoder"])
def test_examples_agree_with_onnxruntime(name: str, batch: int, tmp_path: Path) -> None:
    if batch > 1 and not name.startswith("tiny"):
        pytest.skip("the tiny models show the same at batch 2")
    path = make_example(name, tmp_path / "model.onnx", external_data=batch == 2)
    feed = example_inputs(name, batch=batch, sequence=64)
    graph = load_model(path, {"input_ids": (batch, 64)})
    assert not graph.islands and graph.coverage.share == 1.0
    want, got = onnxruntime_of(path, feed), run_graph(graph, feed)
    for key, array in want.items():
        error = np.linalg.norm(got[key] - array) / np.linalg.norm(array)
        assert error < 1e-5, f"{key}: {error:.1e}"


def test_examples_need_no_division_and_no_repeated_heads(tmp_path: Path) -> None:
    graph = load_model(make_example("tiny_decoder", tmp_path / "m.onnx"), {"input_ids": (2, 32)})
    assert not {"floordiv", "mod"} & set(maps_of(graph))
    # The causal mask that the export computes is a comparison of coordinates, not a table.
    assert all(w.shape != (32, 32) for w in graph.weights.values())
    assert "le" in maps_of(graph)
    # Every weight is one input node however often it is read (rotary tables in every layer).
    names = [n.attr[0] for n in nodes_of(graph, "input")]
    assert len(names) == len(set(names))


def test_flops_are_those_of_the_formula(tmp_path: Path) -> None:
    """One MatMul of 2 * 3 * 5 * 7 operations; the bias adds one per element."""
    model = parsed("agraph (float[3, 5] x, float[5, 7] w) => (float[3, 7] y) {y = MatMul(x, w)}")
    assert imported(model).coverage.our_flops == 2 * 3 * 5 * 7
    both = parsed("""agraph (float[3, 5] x, float[5, 7] w, float[7] b) => (float[3, 7] y)
                     {h = MatMul(x, w) y = Add(h, b)}""")
    assert imported(both).coverage.our_flops == 2 * 3 * 5 * 7 + 3 * 7


# ---- the form of the algebra ------------------------------------------------------------------


def test_regrouping_reshapes_and_transposes_cost_no_arithmetic() -> None:
    """Heads out and back in again: the same tensor, so no node but the input."""
    graph = imported(
        parsed("""
        agraph (float[2, 6, 12] x) => (float[2, 6, 12] y)
        <int64[4] heads = {2, 6, 3, 4}, int64[3] back = {2, 6, 12}>
        {a = Reshape(x, heads) b = Transpose<perm = [0, 2, 1, 3]>(a)
         c = Transpose<perm = [0, 2, 1, 3]>(b) y = Reshape(c, back)}""")
    )
    assert not nodes_of(graph, "map") or set(maps_of(graph)) <= {"add", "mul"}
    x = numbers(2, 6, 12)
    np.testing.assert_array_equal(run_graph(graph, {"x": x})["y"], x)


@pytest.mark.parametrize(
    "shape",
    [(24,), (4, 6), (3, 8), (2, 12), (8, 3), (6, 4), (2, 2, 6), (3, 2, 4), (24, 1), (1, 24)],
)
@pytest.mark.parametrize("start", [(4, 6), (2, 3, 4), (24,), (6, 1, 4)])
def test_any_reshape_of_a_transposed_tensor(start: tuple[int, ...], shape: tuple[int, ...]) -> None:
    dims, target = ", ".join(map(str, start)), ", ".join(map(str, shape))
    last = ", ".join(map(str, start[::-1]))
    perm = ", ".join(map(str, range(len(start))[::-1]))
    same(parsed(f"""
        agraph (float[{dims}] x, float[{last}] z) => (float[{target}] y)
        <int64[{len(shape)}] s = {{{target}}}>
        {{t = Transpose<perm = [{perm}]>(x) u = Add(t, z) y = Reshape(u, s)}}"""),
         x=numbers(*start), z=numbers(*start[::-1], seed=1))  # fmt: skip


def test_split_and_concat_of_every_kind() -> None:
    same(
        parsed("""
        agraph (float[2, 7] x, float[2, 3] z) => (float[2, 17] y)
        <int64[3] parts = {2, 2, 3}>
        {a, b, c = Split<axis = 1>(x, parts) n = Neg(b) d = Concat<axis = -1>(n, a)
         y = Concat<axis = 1>(d, c, x, z)}"""),
        x=numbers(2, 7),
        z=numbers(2, 3, seed=1),
    )


def test_a_tensor_times_its_own_transpose() -> None:
    same(parsed("""agraph (float[2, 5, 5] x) => (float[2, 5, 5] y)
                   {t = Transpose<perm = [0, 2, 1]>(x) m = MatMul(x, t) y = Mul(m, t)}"""),
         x=numbers(2, 5, 5))  # fmt: skip


def test_grouped_and_plain_patch_convolutions() -> None:
    model = parsed("""agraph (float[2, 4, 7, 6] x) => (float[2, 6, 3, 3] y, float[2, 6, 7, 6] z)
                      {y = Conv<strides = [2, 2], group = 2>(x, w, b) z = Conv(x, v)}""")
    weights = {"w": numbers(6, 2, 2, 2), "b": numbers(6, seed=1), "v": numbers(6, 4, 1, 1, seed=2)}
    assert not imported(with_weights(model, **weights)).islands
    same(model, rtol=1e-4, x=numbers(2, 4, 7, 6, seed=3))


def test_windows_that_overlap_leave_gaps_and_reach_into_padding() -> None:
    model = parsed("""agraph (float[2, 4, 9, 7] x) => (y, z, m, a)
        {y = Conv<strides = [2, 1], dilations = [1, 2], pads = [1, 0, 2, 3], group = 2>(x, w, b)
         z = Conv<auto_pad = "SAME_UPPER", strides = [3, 2]>(x, v)
         m = MaxPool<kernel_shape = [3, 2], strides = [2, 2], ceil_mode = 1>(x)
         a = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 0, 2], strides = [2, 3]>(x)}""")
    weights = {"w": numbers(6, 2, 3, 2), "b": numbers(6, seed=1), "v": numbers(5, 4, 4, 3, seed=2)}
    assert not imported(with_weights(model, **weights)).islands
    same(model, rtol=1e-4, x=numbers(2, 4, 9, 7, seed=3))


def test_transposed_convolutions() -> None:
    model = parsed("""agraph (float[2, 4, 5, 6] x) => (y, z)
        {y = ConvTranspose<strides = [2, 3], dilations = [2, 1], pads = [1, 0, 2, 1], group = 2,
             output_padding = [1, 2]>(x, w, b)
         z = ConvTranspose<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, v)}""")
    weights = {"w": numbers(4, 3, 3, 2), "b": numbers(6, seed=1), "v": numbers(4, 2, 3, 3, seed=2)}
    assert not imported(with_weights(model, **weights)).islands
    same(model, rtol=1e-4, x=numbers(2, 4, 5, 6, seed=3))


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resized_images(mode: str) -> None:
    model = parsed(f"""agraph (float[1, 2, 5, 7] x) => (y, z) <float[4] s = {{1, 1, 1.7, 0.6}}>
        {{y = Resize<mode = "{mode}", coordinate_transformation_mode = "asymmetric">(x, , s)
         z = Resize<mode = "{mode}", axes = [2, 3]>(x, , , n)}}""")
    with_weights(model, n=np.array([9, 3]))
    assert not imported(onnx.ModelProto.FromString(model.SerializeToString())).islands
    same(model, rtol=1e-4, x=numbers(1, 2, 5, 7))


def test_an_operator_without_a_row_is_read_by_its_definition() -> None:
    """Attributes that are left out have their defaults there, and scales are constants."""
    model = parsed("""agraph (float[2, 6, 5, 3] x) => (float[2, 6, 5, 3] y, float[2, 6, 5, 3] z)
                      {y = GroupNormalization<num_groups = 3>(x, w, b)
                       z = MeanVarianceNormalization(x)}""", opset=21)
    weights = {"w": numbers(6, seed=1), "b": numbers(6, seed=2)}
    assert not imported(with_weights(model, **weights)).islands
    same(model, rtol=1e-4, x=numbers(2, 6, 5, 3))


def test_rows_of_a_cache_are_replaced_from_an_index_on() -> None:
    model = parsed("""agraph (float[2, 7, 3] cache, float[2, 4, 3] x, int64[2] at) => (y)
                      {y = TensorScatter<mode = "circular">(cache, x, at)}""", opset=24)
    cache, x, at = numbers(2, 7, 3), numbers(2, 4, 3, seed=1), np.array([2, 5])
    want = cache.copy()
    for b, n in np.ndindex(2, 4):
        want[b, (at[b] + n) % 7] = x[b, n]
    got = run_graph(imported(model), {"cache": cache, "x": x, "at": at})["y"]
    np.testing.assert_array_equal(got, want.astype(np.float64))


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_pads(mode: str) -> None:
    same(
        parsed(f"""agraph (float[3, 5] x) => (float[6, 7] y) <int64[4] p = {{1, 3, 2, -1}}>
                    {{y = Pad<mode = "{mode}">(x, p)}}"""),
        x=numbers(3, 5),
    )


def test_indices_count_from_the_end_and_stay_inside() -> None:
    model = parsed("agraph (float[4, 3] t, int64[2] i) => (float[2, 3] y) {y = Gather(t, i)}")
    same(model, t=numbers(4, 3), i=np.array([-1, 2]))
    wild = {"t": numbers(4, 3), "i": np.array([99, -99])}
    got = run_graph(imported(model), wild)["y"]  # undefined in ONNX: memory-safe here
    np.testing.assert_array_equal(got, wild["t"][[3, 0]].astype(np.float64))


def test_long_ranges_and_masks_are_formulas() -> None:
    graph = imported(
        parsed("""
        agraph (float[2048, 2048] x) => (float[2048, 2048] y)
        <int64 zero = {0}, int64 n = {2048}, int64 one = {1}, int64[1] at = {1},
         float low = {-1e9}>
        {i = Range(zero, n, one) row = Unsqueeze(i, at) keep = LessOrEqual(i, row)
         y = Where(keep, x, low)}""")
    )
    assert not graph.weights and maps_of(graph) == ["le", "where"]
    x = numbers(2048, 2048)
    got = run_graph(graph, {"x": x})["y"]
    np.testing.assert_array_equal(got, np.where(np.tri(2048, dtype=bool), x, np.float32(-1e9)))


def test_large_constants_of_one_value() -> None:
    model = parsed("""
        agraph (float[3, 1] x) => (float[3, 999999] y) <int64[2] s = {3, 999999}>
        {a = ConstantOfShape<value = float[1] {2}>(s) b = ConstantOfShape<value = float[1] {5}>(s)
         c = Mul(x, a) y = Add(c, b)}""")
    graph = imported(model)
    assert not graph.weights
    x = numbers(3, 1)
    got = run_graph(graph, {"x": x})["y"]
    np.testing.assert_allclose(got[:, [0, -1]], (x * 2 + 5).repeat(2, axis=1), rtol=1e-6)


@pytest.mark.parametrize("what", ["tril", "triu", "band", "prefix", "scattered", "holes"])
def test_constant_masks(what: str) -> None:
    i, j = np.arange(6)[:, None], np.arange(8)[None, :]
    masks = {
        "tril": j <= i + 1, "triu": j >= i - 2, "band": abs(i - j) <= 2,
        "prefix": np.broadcast_to(j < 5, (6, 8)), "scattered": (i * 3 + j * 5) % 7 < 3,
        "holes": abs(i - j) > 1,
    }  # fmt: skip
    model = parsed("""agraph (float[6, 8] x) => (float[6, 8] y) <float low = {-1.0}>
                      {y = Where(m, x, low)}""")
    graph = imported(with_weights(model, m=masks[what]))
    assert bool(graph.weights) == (what == "scattered")
    x = numbers(6, 8)
    np.testing.assert_array_equal(run_graph(graph, {"x": x})["y"], np.where(masks[what], x, -1))


def test_attention_node_and_written_out_form_are_the_same_expression() -> None:
    ends = "(float[2,4,16,8] q, float[2,4,16,8] k, float[2,4,16,8] v) => (float[2,4,16,8] y)"
    node = parsed(f"agraph {ends} {{y = Attention<is_causal = 1>(q, k, v)}}", opset=23)
    written = parsed(
        f"""
        agraph {ends} <float s = {{0.35355338}}, float low = {{-inf}}>
        {{t = Transpose<perm = [0, 1, 3, 2]>(k) m = MatMul(q, t) n = Mul(m, s)
         w = Where(mask, n, low) p = Softmax(w) y = MatMul(p, v)}}""",
        opset=23,
    )
    with_weights(written, mask=np.tri(16, dtype=bool))
    first, second = imported(node), imported(written)
    assert first.outputs[0].node is second.outputs[0].node


def test_equal_weights_are_one() -> None:
    model = parsed("""agraph (float[2, 3] x) => (float[2, 3] y)
                      {h = MatMul(x, a) g = MatMul(h, b) y = Add(g, c)}""")
    w = numbers(3, 3)
    graph = imported(with_weights(model, a=w, b=w.copy(), c=numbers(1, 3)))
    assert sorted(graph.weights) == ["a", "c"]
    assert graph.weights["c"].shape == (3,)
    np.testing.assert_array_equal(graph.weights["a"].load(), w)
    same(model, x=numbers(2, 3, seed=5))


def test_half_precision_is_summed_in_float32() -> None:
    """4096 times 1 + 2**-10: float16 would lose every second term, or stop at 2048."""
    model = parsed("""agraph (float16[1, 4096] x, float16[4096, 1] w) => (float16[1, 1] y)
                      {y = MatMul(x, w)}""")
    x = np.full((1, 4096), 1 + 2.0**-10, np.float16)
    got = run_graph(imported(model), {"x": x, "w": np.ones((4096, 1), np.float16)})["y"]
    assert np.float16(got[0, 0]) == 4100
    sums = nodes_of(imported(model), "reduce")
    assert [n.types[0].dtype for n in sums] == ["float32"]


# ---- islands ----------------------------------------------------------------------------------


def test_islands_between_our_parts() -> None:
    """Ours, onnxruntime, ours, onnxruntime; both results of TopK cross."""
    model = parsed("""
        agraph (float[2, 8] x) => (float[2, 4] y, int64[2, 4] i) <int64[1] k = {4}, float one = {1}>
        {h = MatMul(x, w) v, i = TopK(h, k) g = Exp(v) s = ai.onnx.ml.Binarizer(g)
         y = Add(s, one)}""", extra=', "ai.onnx.ml" : 3')
    with_weights(model, w=numbers(8, 8))
    graph = imported(model)
    assert [i.op_types for i in graph.islands] == [("TopK",), ("Binarizer",)]
    assert 0.5 < graph.coverage.share < 1
    assert "TopK x1 (not in the operator table)" in graph.coverage.line()
    same(model, x=numbers(2, 8, seed=3))


def test_connected_outside_nodes_are_one_island() -> None:
    model = parsed("""
        agraph (float[2, 8] x) => (float[2, 8] y)
        {a = Exp(x) b = ai.onnx.ml.Binarizer(a) c = ai.onnx.ml.Binarizer(b) d = Neg(a)
         e = ai.onnx.ml.Binarizer(d) y = Add(c, e)}""", extra=', "ai.onnx.ml" : 3')
    graph = imported(model)
    assert len(graph.islands) == 2
    assert [len(onnx.load_from_string(i.model).graph.node) for i in graph.islands] == [2, 1]
    same(model, x=numbers(2, 8))


def test_branches_read_outer_values() -> None:
    model = parsed("""
        agraph (float[2, 3] x, bool c) => (float[2, 3] y) <float two = {2}>
        {h = Mul(x, two)
         r = If (c) <then_branch = yes () => (float[2, 3] a) {a = Neg(h)},
                     else_branch = no () => (float[2, 3] b) {b = Add(h, two)}>
         y = Mul(r, h)}""")
    for flag in (True, False):
        same(model, x=numbers(2, 3), c=np.array(flag))


def test_contributed_operators_take_their_shapes_from_the_graph() -> None:
    model = parsed("""
        agraph (float[2, 8] x) => (float[2, 8] y)
        {a = Exp(x) b = com.microsoft.FastGelu(a) y = com.microsoft.QuickGelu(b)}""",
        extra=', "com.microsoft" : 1')  # fmt: skip
    graph = imported(model)
    assert graph.islands[0].op_types == ("FastGelu", "QuickGelu")
    same(model, x=numbers(2, 8))


def test_random_numbers_are_not_folded() -> None:
    graph = imported(
        parsed("""agraph (float[2] x) => (float[2] y)
                               {r = RandomUniform<shape = [2]>() y = Add(x, r)}""")
    )
    assert [i.op_types for i in graph.islands] == [("RandomUniform",)]


def test_shapes_that_only_a_run_can_tell_are_refused() -> None:
    model = parsed("agraph (float[4] x) => (int64[1, n] y) {y = NonZero(x)}")
    with pytest.raises(ModelError, match=r"NonZero.*'?y.*cut the model"):
        imported(model)


def test_functions_of_the_model_are_inlined() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21, "mine" : 1]>
        agraph (float[2] x) => (float[2] y) {y = mine.twice(x)}
        <domain: "mine", opset_import: ["" : 21]> twice (a) => (b) {b = Add(a, a)}""")
    graph = imported(model)
    assert not graph.islands
    np.testing.assert_array_equal(run_graph(graph, {"x": np.ones(2, np.float32)})["y"], [2, 2])


# ---- recurrences ------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_cells_with_a_length_for_each_sequence(direction: str) -> None:
    model = parsed(f"""agraph (float[5, 3, 4] x, int32[3] n) => (y, h)
        {{y, h = LSTM<hidden_size = 2, direction = "{direction}">(x, w, r, b, n)}}""")
    ways = 2 if direction == "bidirectional" else 1
    weights = {"w": numbers(ways, 8, 4), "r": numbers(ways, 8, 2, seed=1),
               "b": numbers(ways, 16, seed=2)}  # fmt: skip
    assert not imported(with_weights(model, **weights)).islands
    same(model, x=numbers(5, 3, 4, seed=3), n=np.array([5, 2, 3], np.int32))


def test_a_scan_with_a_body_that_reads_the_whole_too() -> None:
    model = parsed("""agraph (float[2] s, float[3, 4, 2] x) => (float[2] last, float[2, 4] sums)
        {last, sums = Scan<num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
             scan_input_directions = [1], body = step (float[2] a, float[3, 2] row) => (b, out)
             {m = ReduceMax<keepdims = 0>(row, zero) t = ReduceSum<keepdims = 0>(x, both)
              p = Mul(a, m) b = Add(p, t) out = Sub(b, a)}>(s, x)}""")
    axes = {"zero": np.array([0]), "both": np.array([0, 1])}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in axes.items())
    assert not imported(onnx.ModelProto.FromString(model.SerializeToString())).islands
    same(model, rtol=1e-4, s=numbers(2), x=numbers(3, 4, 2, seed=1))
