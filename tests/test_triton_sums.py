"""Sums of products stay what they are: the compiler must not make matrix products of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from autosched.codegen.runtime.launch import load_kernels
from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_spec import TritonModule
from autosched.ir.define import algebra
from autosched.ir.node import Program
from autosched.ir.ops import abs_, input_, sum_
from autosched.ir.rules import tile
from autosched.ir.rules.action import act


def batched() -> Program:
    """A sum of products that no dot can be: both operands have the axis b."""
    x, y = input_("x", {"b": 16, "k": 32, "m": 16}), input_("y", {"b": 16, "k": 32})
    return algebra(z=("b m", sum_("k", abs_(x) * y)))


def short() -> Program:
    """A contraction over fewer elements than tensor cores take."""
    x, y = input_("x", {"m": 16, "k": 8}), input_("y", {"k": 8, "n": 32})
    return algebra(z=("m n", sum_("k", x * y)))


@pytest.mark.parametrize("program", [batched(), short()], ids=["batched", "short"])
def test_no_dot_comes_out_of_a_sum(program: Program, tmp_path: Path) -> None:
    axes = [[a, 0] for a in program.outputs[0].dims]
    made = tile.apply(program, act("tile", plans=[[axes, [["k", 0]], []]]))
    assert isinstance(made, Program)
    module = emit(made, Header("A sum"))
    assert isinstance(module, TritonModule) and "tl.dot" not in module.source
    file = tmp_path / "kernels.py"
    file.write_text(module.source)
    function = getattr(load_kernels(file), module.launches[0].kernel)
    source = ASTSource(function, dict.fromkeys(function.arg_names, "*fp32"), constexprs={})
    assert "tt.dot" not in compile(source, target=GPUTarget("cuda", 90, 32)).asm["ttir"]


def test_a_plain_sum_would_become_one(tmp_path: Path) -> None:
    """What the helper guards against; when this fails, the helper may go."""
    file = tmp_path / "plain.py"
    file.write_text(
        "import triton\nimport triton.language as tl\n\n\n@triton.jit\ndef f(x, y, z):\n"
        "    m, k = tl.arange(0, 16)[:, None], tl.arange(0, 8)[None, :]\n"
        "    a, b = tl.load(x + m * 8 + k), tl.load(y + tl.trans(k) * 16 + tl.trans(m))\n"
        "    s = tl.sum(a[:, :, None] * b[None, :, :], 1)\n"
        "    tl.store(z + m * 16 + tl.trans(m), s)\n"
    )
    function = load_kernels(file).f
    source = ASTSource(function, dict.fromkeys(function.arg_names, "*fp32"), constexprs={})
    assert "tt.dot" in compile(source, target=GPUTarget("cuda", 90, 32)).asm["ttir"]
