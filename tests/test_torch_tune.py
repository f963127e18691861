"""Torch modules through the tuner: called as the module is, verified, cut into parts, and .pt2
files that are read without running what is in them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import autosched
from autosched.codegen.runtime.errors import InputError, PackageError
from autosched.codegen.runtime.face import bind, build
from autosched.ir.frontend.torch import import_module, read_program
from autosched.ir.graph import ModelError
from autosched.tools.arrays import draw_model_inputs
from autosched.tools.bench import bench
from autosched.tools.peers import part_side
from autosched.tools.torch_parts import TorchGraph, eager, run_eagerly
from autosched.tools.verify import verify


class Gate(nn.Module):
    """x[b, n] and a mask in a dict to a gated product, its sum, and what was given."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.norm, self.gate = nn.LayerNorm(width), nn.Linear(width, width)
        self.register_buffer("table", torch.arange(width) / width)

    def forward(self, x: torch.Tensor, given: dict[str, Any], scale: float = 1.0) -> Any:
        y = torch.sigmoid(self.gate(self.norm(x))) * x * scale + self.table
        y = y.masked_fill(given["mask"], 0.0)
        return {"y": y, "more": (y.sum(-1), scale)}


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    return Gate().eval()


def operands(seed: int = 0) -> tuple[Any, ...]:
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 16, generator=make)
    return x, {"mask": torch.randn(6, 16, generator=make) > 1}


@pytest.fixture(scope="module")
def package(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    result = autosched.tune(module, operands(), folder / "gate", example_kwargs={"scale": 0.5},
                            trials=0, store=folder / "records.sqlite", target="cpu")  # fmt: skip
    assert result.model == "Gate" and result.peer == "torch" and result.covered == 1.0
    return folder / "gate"


def test_a_tuned_module_is_called_as_the_module_is(module: nn.Module, package: Path) -> None:
    model = autosched.load(package)
    x, given = operands(seed=1)
    want = module(x, given, scale=0.5)
    for got in (model(x, given, scale=0.5), model(given=given, x=x), model(x.t().contiguous().t(),
                                                                         given)):  # fmt: skip
        assert list(got) == ["y", "more"] and isinstance(got["more"], tuple)
        torch.testing.assert_close(got["y"], want["y"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(got["more"][0], want["more"][0], rtol=1e-5, atol=1e-5)
        assert got["more"][1] == 0.5
    arrays = model(x.numpy(), {"mask": given["mask"].numpy()})
    assert isinstance(arrays["y"], np.ndarray)
    with pytest.raises(InputError, match=r"scale was 0\.5 when the model was tuned"):
        model(x, given, scale=2.0)
    with pytest.raises(InputError, match=r"float32\[6, 16\] is expected"):
        model(x[:3], given)


def test_it_verifies_against_eager_torch(module: nn.Module, package: Path) -> None:
    found = verify(module, package, example_inputs=operands(), example_kwargs={"scale": 0.5})
    assert found.ok and {c.reference for c in found.outputs} == {"float64", "torch"}
    torch.manual_seed(5)
    with pytest.raises(PackageError, match="tuned for another model"):
        verify(Gate().eval(), package, example_inputs=operands(), example_kwargs={"scale": 0.5})
    with pytest.raises(ModelError, match=r"the peers of Gate are torch, torch\.compile"):
        bench(module, package, against="onnxruntime", example_inputs=operands(),
              example_kwargs={"scale": 0.5})  # fmt: skip


# ---- files --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "gate.pt2"
    with torch.no_grad():
        program = torch.export.export(module, operands(), {"scale": 0.5}, strict=False)
    torch.export.save(program, path)
    return path


def test_a_saved_program_is_its_module(module: nn.Module, file: Path, package: Path) -> None:
    found = import_module(read_program(file))
    inputs = draw_model_inputs(found.graph, 0)
    side = eager(str(file), inputs)()
    for name, array in run_eagerly(found, inputs).items():
        if name == "y":
            np.testing.assert_allclose(side["y"].numpy(), array, rtol=1e-6)
    # A program's file belongs to the kernels of its module: it computes the same.
    assert verify(file, package).ok


def changed(file: Path, target: Path, member: str, change: Callable[[Any], None]) -> Path:
    """The archive with one of its JSON members changed."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith(member):
                facts = json.loads(data)
                change(facts)
                data = json.dumps(facts).encode()
            new.writestr(info.filename, data)
    return target


def test_code_in_a_file_is_not_run(file: Path, tmp_path: Path) -> None:
    weights, model = "model_weights_config.json", "models/model.json"

    def pickled(facts: Any) -> None:
        next(iter(facts["config"].values()))["use_pickle"] = True

    def foreign(facts: Any) -> None:
        facts["graph_module"]["graph"]["nodes"][0]["target"] = "os.system"

    def evaluated(facts: Any) -> None:
        facts["graph_module"]["graph"]["nodes"][0]["inputs"].append(
            {"name": "x", "arg": {"as_expr": {"expr_str": "__import__('os')"}}, "kind": 1})

    def guarded(facts: Any) -> None:
        facts["guards_code"] = ["__import__('os').mkdir('trap')"]

    for number, (member, change, why) in enumerate((
        (weights, pickled, "is pickled, and loading that can run any code"),
        (model, foreign, r"calls os\.system, which is none of ATen's"),
        (model, evaluated, "an argument of it is of the kind 'expr'"),
    )):  # fmt: skip
        with pytest.raises(ModelError, match=why):
            read_program(changed(file, tmp_path / f"{number}.pt2", member, change))
    program = read_program(changed(file, tmp_path / "guards.pt2", model, guarded))
    assert not program._guards_code
    program.module()(*operands(), scale=0.5)
    assert not Path("trap").exists()


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.pt2").write_text("no archive")
    with pytest.raises(ModelError, match=r"text\.pt2 is no program of torch\.export\.save"):
        read_program(tmp_path / "text.pt2")
    with zipfile.ZipFile(tmp_path / "empty.pt2", "w") as archive:
        archive.writestr("a/b", "")
    with pytest.raises(ModelError, match=r"is no program of torch\.export\.save.*it lacks"):
        read_program(tmp_path / "empty.pt2")
    with pytest.raises(ModelError, match=r"none\.pt2 can't be read"):
        read_program(tmp_path / "none.pt2")


# ---- parts --------------------------------------------------------------------------------------


def test_parts_of_a_program_answer_as_the_whole(file: Path, tmp_path: Path) -> None:
    model = import_module(read_program(file))
    graph = TorchGraph(model, file)
    values = graph.every_value(draw_model_inputs(model.graph, 0))
    assert {"x", "given_mask", "linear", "layer_norm"} <= set(values)
    part = graph.part(["layer_norm"], ["sigmoid"], values)
    assert part is not None and part.nodes == 2 and list(part.feeds) == ["layer_norm"]
    (tmp_path / f"part{part.suffix}").write_bytes(part.model)
    np.savez(tmp_path / "inputs.npz", **part.feeds)
    (found,) = part_side(str(tmp_path / f"part{part.suffix}"), str(tmp_path / "inputs.npz"))()
    np.testing.assert_allclose(found.numpy(), values["sigmoid"], rtol=1e-6)


# ---- calls --------------------------------------------------------------------------------------

CALL = {
    "parameters": ["x", "pair", "late"],
    "args": [{"name": "a"}, {"tuple": [{"name": "b"}, {"value": None}]}],
    "kwargs": {"flag": {"value": True}, "late": {"list": [{"name": "c"}]}},
    "result": {"list": [{"dict": [["o", {"name": "o"}]]}, {"value": 3}]},
}


def test_calls_are_bound_by_place_and_by_name() -> None:
    want = {"a": 1, "b": 2, "c": 3}
    assert bind(CALL, (1, (2, None), [3]), {}) == want
    assert bind(CALL, (1,), {"pair": [2, None], "late": (3,), "flag": True}) == want
    assert bind(CALL, (1, (2, None)), {"late": [3], "unknown": None}) == want
    assert build(CALL["result"], {"o": 7}) == [{"o": 7}, 3]


@pytest.mark.parametrize(("args", "kwargs", "message"), [
    ((1,), {}, r"pair is missing; it takes \(x, pair, flag, late\)"),
    ((1, (2, None), [3], 4), {}, "4 positional arguments"),
    ((1, (2, None), [3]), {"x": 1}, "x is given twice"),
    ((1, (2, 5), [3]), {}, r"pair\[1\] was None when"),
    ((1, (2,), [3]), {}, "pair must be a sequence of 2"),
    ((1, (2, None), [3]), {"mask": 1}, "mask was not given when the model was tuned"),
])  # fmt: skip
def test_calls_that_do_not_fit(args: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bind(CALL, args, kwargs)
