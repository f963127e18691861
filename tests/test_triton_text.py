"""The text of Triton modules: what the head says, names, and lines that are too long."""

from __future__ import annotations

import ast

import triton_programs as programs

from autosched.codegen.triton import Header, emit
from autosched.codegen.triton_spec import TritonModule
from autosched.codegen.triton_text import WIDTH, Names, literal, wrapped


def source(header: Header) -> TritonModule:
    module = emit(programs.gemm(37, 29, 45, facts=(("warps", 8), ("stages", 3))), header)
    assert isinstance(module, TritonModule)
    return module


def test_the_head_says_what_it_is_and_where_it_is_from() -> None:
    definition = 'y[m, n] = "x" \\ w\n' + "a line " * 30
    header = Header("A product", definition, {"knobs": {"bm": 32}}, "Made by autosched 0.1.")
    text = source(header).source
    doc = ast.get_docstring(ast.parse(text))
    assert doc is not None and doc.startswith("A product.\n\nDefinition:\n    y[m, n] = ")
    assert '"x" \\ w' in doc and '"bm": 32' in doc and doc.endswith("Made by autosched 0.1.")
    assert all(len(line) < 100 for line in text.splitlines())


def test_a_module_is_data_that_describes_its_launches() -> None:
    module = source(Header("A product"))
    (launch,) = module.launches
    assert (launch.kernel, launch.programs, launch.warps, launch.stages) == ("gemm", 4, 8, 3)
    assert launch.tensors == ("x", "w", "bias", "y")
    assert [(t.name, t.role, t.extents) for t in module.tensors][1] == ("w", "weight", (45, 29))
    assert TritonModule.from_json(module.to_json()) == module


def test_offsets_are_wide_only_where_a_buffer_is() -> None:
    module = emit(programs.gemm(70000, 40000, 64, 128, 128, 64, "bfloat16"), Header("Big"))
    assert isinstance(module, TritonModule)
    wide = [line for line in module.source.splitlines() if "int64" in line]
    assert len(wide) == 1 and "y +" in wide[0]
    assert "= tl.dot(x_tile, w_tile)" in module.source


def test_the_same_program_gives_the_same_text() -> None:
    assert source(Header("A product")) == source(Header("A product"))


def test_names_are_unique_and_python() -> None:
    names = Names(("x",))
    wanted = ("x", "x", "m.i", "max", "4d", "for", "tl")
    assert [names.fresh(n) for n in wanted] == ["x_2", "x_3", "m_i", "max_", "v4d", "for_", "tl_"]
    names.released.add("m_i")
    assert names.fresh("m.i") == "m_i_2" and names.fresh("m.i", again=True) == "m_i"


def test_long_lines_break_at_commas_and_at_signs() -> None:
    terms = " + ".join(f"first_{n}[:, None] * {n}" for n in range(20))
    arguments = ", ".join(f"argument_{n}" for n in range(20))
    texts = (f"total = {terms}", f"y = tl.load({arguments})", f"f({terms}, {terms})")
    for line in (f"    {text}" for text in texts):
        lines = wrapped(line)
        assert all(len(x) <= WIDTH for x in lines) and len(lines) > 1
        ast.parse("if True:\n" + "\n".join(lines))
        assert "".join("".join(lines).split()).replace(",)", ")") in (
            "".join(line.split()), "".join(line.split()).replace("=", "=(") + ")")  # fmt: skip


def test_literals() -> None:
    got = [literal(x, "float32").text for x in (0.5, -1.0, float("inf"), float("nan"))]
    assert got == ["0.5", "-1.0", 'float("inf")', 'float("nan")']
