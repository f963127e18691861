"""study: what the compiler says of a definition that it has never seen."""

from __future__ import annotations

from pathlib import Path

import programs as P
import pytest

from autosched.ir.define import algebra
from autosched.ir.ops import abs_, exp, input_, max_, sum_
from autosched.ir.text import to_text
from autosched.tools import study


@pytest.mark.parametrize("backend", ["tvm", "triton"])
def test_attention_is_one_kernel_in_one_pass(backend: str) -> None:
    found = study.study(P.attention(1, 2, 19, 16, j=43), backend)
    assert found.right and found.kernels == found.tasks == 1
    assert found.passes == {"j": "one pass"}
    assert "right" in str(found) and found.source


def test_the_reason_is_told() -> None:
    x = input_("x", {"t": 7, "c": 40})
    mean = sum_("c", x) / 40.0
    program = algebra(y=("t", max_("c", abs_(x - mean)) + sum_("c", exp(x * 0.1))))
    found = study.study(program)
    assert found.right and found.passes["c"].startswith("several passes: ")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "definition.txt"
    file.write_text(to_text(P.softmax(5, 33)))
    assert study.main([str(file), "--source"]) == 0
    said = capsys.readouterr().out
    assert "1 kernel" in said and "def " in said
    file.write_text("program nothing")
    assert study.main([str(file)]) == 2
    assert str(file) in capsys.readouterr().err
    assert study.main([str(tmp_path / "no.txt")]) == 2
