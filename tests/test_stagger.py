"""Products that start a step early or end a step late: the same values, wherever the loop ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_build import build
from autosched.codegen.triton_spec import TritonModule
from autosched.ir.define import algebra
from autosched.ir.interp import evaluate
from autosched.ir.node import Node, Program, walk
from autosched.ir.ops import cast, exp, input_, iota, max_, reaxis, sum_, where
from autosched.ir.rules import stagger
from autosched.ir.rules.action import Action, Illegal, act
from autosched.ir.schedule import replay, run_actions
from autosched.ir.sketch_gpu import gpu_sketches
from autosched.ir.target import parse_target
from autosched.tools.triton_interpreter import Interpreter

Mask = Callable[[Node, Node], Node]
MASKS: dict[str, Mask | None] = {
    "full": None,
    "causal": lambda i, j: i >= j,
    "window": lambda i, j: (i >= j) & (i - j <= 20),
    "ahead": lambda i, j: j > i + 30,  # rows without any key, and loops without a step
}


def attention(
    tokens: int, mask: str, dtype: str = "float32", groups: int = 1, d: int = 16, heads: int = 2,
) -> Program:  # fmt: skip
    q = input_("q", {"b": 1, "h": heads, "i": tokens, "d": d}, dtype)
    k = input_("k", {"b": 1, "g": heads // groups, "j": tokens, "d": d}, dtype)
    v = input_("v", {"b": 1, "g": heads // groups, "j": tokens, "e": d}, dtype)
    own = {"g": iota("h", heads) // groups}
    wide = [cast(x, "float32") for x in (q, reaxis(k, own), reaxis(v, own))]
    s = sum_("d", wide[0] * wide[1]) * 0.25
    rule = MASKS[mask]
    if rule is not None:
        s = where(rule(iota("i", tokens), iota("j", tokens)), s, float("-inf"))
    p = exp(s - max_("j", s))
    return algebra(o=("b h i e", cast(sum_("j", p * wide[2]) / sum_("j", p), dtype)))


def schedules(program: Program) -> Iterator[tuple[str, Program]]:
    """A legal schedule of each sketch that staggers a loop."""
    for sketch in gpu_sketches(program, parse_target("sm_90")):
        if any(a.rule == "stagger" for a in sketch.actions):
            table = sketch.table(64, 0)
            row = {k.name: int(table[k.name][0]) for k in sketch.knobs}
            made = replay(program, sketch.schedule(row))
            assert isinstance(made, Program), made
            yield sketch.name, made


def inputs(program: Program, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n.attr[0]: rng.standard_normal([e for _, e in n.attr[1]]) for n in program.inputs}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("tokens", [96, 101])
def test_means_the_same(mask: str, tokens: int) -> None:
    program = attention(tokens, mask, groups=2)
    arrays = inputs(program)
    want = evaluate(program, arrays)["o"]
    seen = 0
    for name, made in schedules(program):
        got = evaluate(made, arrays)["o"]
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14, err_msg=name)
        seen += 1
    assert seen >= 2


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_read_twice_counts_once(bad: float) -> None:
    """The first block is read before its turn, the last one again after it: with 0 as factor, not
    with values that would spread."""
    program = attention(96, "full")
    arrays = inputs(program)
    arrays["v"][:, :, [0, -1], 3] = bad
    want = evaluate(program, arrays)["o"]
    for _, made in schedules(program):
        np.testing.assert_allclose(evaluate(made, arrays)["o"], want, rtol=1e-12, atol=1e-14)


def test_one_product_starts_early_and_one_ends_late() -> None:
    for name, made in schedules(attention(101, "causal", "bfloat16")):
        folds = [n for n in walk(*made.body) if n.op == "fold"]
        assert folds
        for fold in folds:
            products = [n for n in walk(*fold.src[2 + len(fold.attr[1]) :]) if n.op == "dot"]
            # Nothing that this step makes stands between memory, states and its products.
            assert all(s.op in ("carry", "load") for p in products for s in p.src), name


def chosen(interpreter: Interpreter) -> tuple[str, float]:
    """The type that kernels are tried in, and its bound: the one that shows most in the
    interpreter, the one that compiles in a second and uses tensor cores on a device."""
    return ("float32", 1e-5) if interpreter.device == "cpu" else ("float16", 2e-3)


@pytest.mark.parametrize("descriptors", [0, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_as_triton_kernels(interpreter: Interpreter, mask: str, descriptors: int) -> None:
    dtype, bound = chosen(interpreter)
    program = attention(101, mask, dtype)
    arrays = rounded(inputs(program, 1), dtype)
    want = evaluate(program, arrays)["o"]
    for name, made in schedules(program):
        module = emit(with_descriptors(made, descriptors), Header(name))
        assert isinstance(module, TritonModule), module
        got = interpreter(module, arrays)["o"]
        there = ~np.isnan(want)
        assert (np.isnan(got) == ~there).all(), name
        error = np.linalg.norm((got - want)[there]) / np.linalg.norm(want[there])
        assert error < bound, (name, error)


def rounded(arrays: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """The nearest numbers that a type holds."""
    return {name: a.astype(dtype).astype(np.float32) for name, a in arrays.items()}


def with_descriptors(program: Program, value: int) -> Program:
    """The program with another way to load."""
    kernels = []
    for kernel in program.body:
        name, binds, facts = kernel.attr
        facts = tuple((n, value if n == "descriptors" else v) for n, v in facts)
        kernels.append(Node("kernel", kernel.src, (name, binds, facts)))
    return program.with_body(*kernels)


@pytest.mark.parametrize(
    ("program", "code"),
    [
        (algebra(y=("m n", sum_("k", input_("x", {"m": 40, "k": 96}, "float32")
                                * input_("w", {"k": 96, "n": 32}, "float32")))), "NO_PRODUCT"),
        (algebra(y=("m", max_("k", input_("x", {"m": 40, "k": 40000}, "float32")))), "NO_PRODUCT"),
    ],
)  # fmt: skip
def test_refuses(program: Program, code: str) -> None:
    sketch = gpu_sketches(program, parse_target("sm_90"))[0]
    table = sketch.table(64, 0)
    made = replay(program, sketch.schedule({k.name: int(table[k.name][0]) for k in sketch.knobs}))
    assert isinstance(made, Program)
    (axis,) = {n.attr[0] for n in walk(*made.body) if n.op == "fold"}
    refused = stagger.apply(made, act("stagger", axis=axis))
    assert isinstance(refused, Illegal) and refused.code == code
    unknown = stagger.apply(made, act("stagger", axis="nowhere"))
    assert isinstance(unknown, Illegal) and unknown.code == "NO_LOOP"
    assert stagger.propose(made) == ()


def test_an_action_is_plain_data() -> None:
    program = attention(96, "causal")
    sketch = next(s for s in gpu_sketches(program, parse_target("sm_90")) if "stagger" in s.name)
    read = tuple(Action.from_json(a.to_json()) for a in sketch.actions)
    assert read == sketch.actions
    assert run_actions(program, read) == run_actions(program, sketch.actions)


def test_a_loop_of_warps_that_load_tests_all_its_blocks(
    interpreter: Interpreter, tmp_path: Path
) -> None:
    """Warps of their own load for one loop alone: a mask bounds it and cuts it in no parts."""
    dtype, bound = chosen(interpreter)
    program = attention(300, "causal", dtype, d=64)
    arrays = rounded(inputs(program, 2), dtype)
    want = evaluate(program, arrays)["o"]
    narrow = attention(300, "causal", "bfloat16", d=64)
    found = [s for s in gpu_sketches(narrow, parse_target("sm_90")) if ".tested" in s.name]
    assert found
    for sketch in found:
        table = sketch.table()
        schedule = sketch.schedule({k.name: int(table[k.name][0]) for k in sketch.knobs})
        made, exact = replay(narrow, schedule), replay(program, schedule)
        assert isinstance(made, Program) and isinstance(exact, Program)
        (fold,) = (n for n in walk(*made.body) if n.op == "fold")
        assert fold.src[1].op != "const", "the mask bounds the loop"
        module = emit(exact, Header(sketch.name))
        assert isinstance(module, TritonModule), module
        got = interpreter(module, arrays)["o"]
        assert np.linalg.norm(got - want) / np.linalg.norm(want) < bound, sketch.name
    module = emit(made, Header("narrow"))
    assert isinstance(module, TritonModule) and "warp_specialize=True" in module.source
    built = build(module, parse_target("sm_90"), tmp_path).kernels[0]
    assert built.threads > 128 and not built.spill_bytes and not built.serialised
