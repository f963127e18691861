"""The command line as its users meet it: help, JSON, and one clear message for each mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models import parsed, saved, with_weights
from typer.testing import CliRunner

from autosched.cli import app
from autosched.examples import example_inputs, make_example
from autosched.options import OptionError, duration_s, shapes

COMMANDS = ("tune", "verify", "run", "bench", "show", "example")
SHAPE = ("--shape", "input_ids=1,16")


def call(*args: object):
    return CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)


def refused(*args: object) -> str:
    """The message of a command that must fail as a user's mistake does."""
    result = call(*args)
    assert result.exit_code == 2, (result.exit_code, result.stdout, result.stderr)
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert 20 < len(result.stderr) < 900
    return " ".join(result.stderr.split())


# ---- help and options ----------------------------------------------------------------------------


def test_help_lists_all_commands_and_is_fast():
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "autosched.cli", "--help"], text=True,
                          capture_output=True, check=True)  # fmt: skip
    assert time.perf_counter() - begun < 3  # 0.2 s alone; the machine may be busy
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command):
    result = call(command, "--help")
    assert result.exit_code == 0
    assert f"Example: autosched {command} " in result.stdout
    assert "--json" in result.stdout


def test_import_loads_nothing_heavy():
    heavy = ("numpy", "onnx", "onnxruntime", "tvm", "torch", "networkx", "lightgbm", "rich")
    code = (
        "import sys, autosched, autosched.cli\n"
        f"print([m for m in {heavy!r} if m in sys.modules], dir(autosched))"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.startswith("[] ")
    assert "'tune'" in done.stdout and "'load'" in done.stdout


def test_version():
    assert call("--version").stdout.startswith("autosched 0.")


@pytest.mark.parametrize(("text", "seconds"), [("120s", 120), ("2m", 120), ("1.5h", 5400),
                                               ("90", 90), ("3min", 180)])  # fmt: skip
def test_durations(text, seconds):
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "fast", "-3s", "1 day", "s"])
def test_bad_durations(text):
    with pytest.raises(OptionError, match="write 120s"):
        duration_s(text)


def test_shapes():
    assert shapes(["a=1,128", "b=", "a=b=2"]) == {"a": (1, 128), "b": (), "a=b": (2,)}
    for bad in ("a", "=1", "a=1,x", "a=-1"):
        with pytest.raises(OptionError, match="write NAME=SIZE"):
            shapes([bad])
    with pytest.raises(OptionError, match="is given the shapes"):
        shapes(["a=1", "a=2"])


def test_bad_options_name_what_would_do(tmp_path):
    tune = ("tune", "m.onnx", "-o", tmp_path / "t")
    assert "write NAME=SIZE" in refused(*tune, "--shape", "input_ids")
    assert "write 120s" in refused(*tune, "--budget", "soon")
    assert "give one of them" in refused(*tune, "--budget", "9s", "--trials", "3")


# ---- models that can't be used ------------------------------------------------------------------


def linear() -> onnx.ModelProto:
    model = parsed("agraph (float[n, 64] x) => (float[n, 64] y) {y = MatMul(x, w)}")
    return with_weights(model, w=np.eye(64, dtype=np.float32))


def external(folder: Path) -> Path:
    """A model in `folder` whose weight lies in the file w.bin beside it."""
    folder.mkdir()
    path = folder / "m.onnx"
    onnx.save(linear(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    return path


def truncated(folder: Path) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(linear().SerializeToString()[:9000])
    return path


def not_onnx(folder: Path) -> Path:
    path = folder / "m.onnx"
    path.write_text("this is a text, and a long one: " * 20)
    return path


def absent(folder: Path) -> Path:
    return folder / "m.onnx"


def data_missing(folder: Path) -> Path:
    path = external(folder / "model")
    (folder / "model" / "w.bin").unlink()
    return path


def data_escapes(folder: Path) -> Path:
    path = external(folder / "model")
    (folder / "model" / "w.bin").rename(folder / "w.bin")
    model = onnx.load(path, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../w.bin"
    path.write_bytes(model.SerializeToString())
    return path


def data_is_a_link(folder: Path) -> Path:
    path = external(folder / "model")
    (folder / "model" / "w.bin").rename(folder / "elsewhere.bin")
    (folder / "model" / "w.bin").symlink_to(folder / "elsewhere.bin")
    return path


def unknown_version(folder: Path) -> Path:
    model = linear()
    model.opset_import[0].version = 99
    return saved(model, folder / "m.onnx")


def free_dimension(folder: Path) -> Path:
    return saved(linear(), folder / "m.onnx")


FAULTS = [
    (truncated, (), "fetch or export it again"),
    (not_onnx, (), "ONNX"),
    (absent, (), "does not exist"),
    (data_missing, ("--shape", "x=2,64"), "'w.bin' with the weight 'w' is missing"),
    (data_escapes, ("--shape", "x=2,64"), "outside of the model's folder"),
    (data_is_a_link, ("--shape", "x=2,64"), "is a link"),
    (unknown_version, ("--shape", "x=2,64"), "opset 99"),
    (free_dimension, (), "the input 'x' has the free dimension 'n'"),
    (free_dimension, ("--shape", "x=2,65"), "contradicts the graph"),
    (free_dimension, ("--shape", "x=2"), "has 1 dimensions"),
    (free_dimension, ("--shape", "z=2,64"), "no such input; it has x"),
]


@pytest.mark.parametrize("command", ["tune", "show"])
@pytest.mark.parametrize(("make", "options", "cause"), FAULTS)
def test_a_model_that_cannot_be_used(command, make, options, cause, tmp_path):
    out = ("-o", tmp_path / "tuned", "--store", tmp_path / "store.sqlite")
    path = make(tmp_path)
    assert cause in refused(command, path, *options, *(out if command == "tune" else ()))
    assert not (tmp_path / "tuned").exists()


def test_a_free_dimension_shows_the_flag(tmp_path):
    path = free_dimension(tmp_path)
    assert "--shape x=1,64" in refused("tune", path, "-o", tmp_path / "tuned")


def test_errors_as_json(tmp_path):
    result = call("show", tmp_path / "none.onnx", "--json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert error["kind"] == "ModelError" and error["message"] in result.stderr


# ---- places and targets -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return make_example("tiny_encoder", tmp_path_factory.mktemp("models") / "model.onnx")


def test_an_output_folder_that_is_not_empty(encoder, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    assert "is not empty" in refused("tune", encoder, "-o", tmp_path, *SHAPE)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_an_output_folder_below_a_file(encoder, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in refused("tune", encoder, "-o", tmp_path / "file" / "tuned", *SHAPE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_that_is_not_writable(encoder, tmp_path):
    tmp_path.chmod(0o500)
    assert "is not writable" in refused("tune", encoder, "-o", tmp_path / "tuned", *SHAPE)


def test_an_output_folder_on_a_read_only_filesystem(encoder):
    assert "is not writable" in refused("tune", encoder, "-o", "/proc/autosched/tuned", *SHAPE)


def test_a_store_that_is_a_folder(encoder, tmp_path):
    place = ("-o", tmp_path / "tuned", "--store", tmp_path)
    assert "is a folder" in refused("tune", encoder, *place, *SHAPE)


def test_a_store_that_is_something_else(encoder, tmp_path):
    (tmp_path / "s.sqlite").write_text("not a database, however long this text may be" * 9)
    place = ("-o", tmp_path / "tuned", "--store", tmp_path / "s.sqlite")
    assert "not a record store" in refused("tune", encoder, *place, *SHAPE)


def test_an_unknown_target(encoder, tmp_path):
    told = refused("tune", encoder, "-o", tmp_path / "t", "--target", "cpu:z80", *SHAPE)
    assert "cpu:x86-64-v3" in told
    assert "cpu:x86-64-v3" in refused("show", encoder, "--target", "tpu", *SHAPE)


# ---- show and example ----------------------------------------------------------------------------


def test_show_lists_the_tasks(encoder):
    result = call("show", encoder, *SHAPE, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0 and found["coverage"].startswith("100.0%")
    assert sum(t["share"] for t in found["tasks"]) == pytest.approx(1)
    text = call("show", encoder, *SHAPE).stdout
    assert all(t["name"] in text for t in found["tasks"])


def test_show_a_task_after_each_action(encoder):
    found = json.loads(call("show", encoder, *SHAPE, "--task", 1, "--json").stdout)
    titles = [v["title"] for v in found["views"]]
    actions = found["schedule"]["actions"]
    assert titles[0] == "algebra" and len(titles) == len(actions) + 1
    assert [t.split("(")[0] for t in titles[1:]] == [a["rule"] for a in actions]
    assert found["views"][0]["text"].startswith("program algebra")
    assert found["views"][-1]["text"].startswith("program tile")


def test_show_what_is_compiled(encoder):
    assert "T.prim_func" in call("show", encoder, *SHAPE, "--task", 1, "--level", "tvm").stdout


def test_show_names_the_tasks_and_levels_there_are(encoder):
    assert "the model has the tasks 0 to" in refused("show", encoder, *SHAPE, "--task", 99)
    told = refused("show", encoder, *SHAPE, "--task", 0, "--level", "ptx")
    assert "algebra, tile, tvm" in told


def test_example_writes_model_and_inputs(tmp_path):
    files = ("-o", tmp_path / "m.onnx", "--inputs", tmp_path / "in.npz", "--sequence", 16)
    found = json.loads(call("example", "tiny_decoder", *files, "--json").stdout)
    assert Path(found["model"]).stat().st_size == found["bytes"]
    with np.load(tmp_path / "in.npz") as arrays:
        assert arrays["input_ids"].shape == (1, 16)
    assert "is there already" in refused("example", "tiny_decoder", *files)
    assert call("example", "tiny_decoder", *files, "--force").exit_code == 0


def test_example_names_what_there_is(tmp_path):
    assert "tiny_encoder" in refused("example", "gpt", "-o", tmp_path / "m.onnx")
    big = ("--sequence", 4096, "--inputs", tmp_path / "in.npz")
    assert "at most" in refused("example", "tiny_encoder", "-o", tmp_path / "m.onnx", *big)
    assert not any(tmp_path.iterdir())


# ---- a tuned model ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(encoder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    files = ("-o", folder / "kernels", "--store", folder / "records.sqlite")
    result = call("tune", encoder, *files, *SHAPE, "--trials", 0, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["package"] == str(folder / "kernels")
    assert {t["name"] for t in found["tasks"]}
    return folder / "kernels"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inputs") / "in.npz"
    np.savez(path, **example_inputs("tiny_encoder", 1, 16))
    return path


def test_dry_run_plans_and_writes_nothing(encoder, tmp_path):
    files = ("-o", tmp_path / "kernels", "--store", tmp_path / "records.sqlite")
    result = call("tune", encoder, *files, *SHAPE, "--dry-run", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0 and found["package"] is None and found["estimate_s"] > 0
    assert not (tmp_path / "kernels").exists()
    assert "would take about" in call("tune", encoder, *files, *SHAPE, "--dry-run").stdout


def test_verify_passes_and_says_how_far(encoder, tuned):
    result = call("verify", encoder, "--kernels", tuned, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0 and found["ok"], found
    assert {o["reference"] for o in found["outputs"]} == {"onnxruntime", "float64"}
    assert all(o["rel_l2"] < 1e-5 for o in found["outputs"] if o["reference"] == "float64")
    assert found["kernels"] and all(k["rel_l2"] < 1e-5 for k in found["kernels"])
    assert "all right" in call("verify", encoder, "--kernels", tuned).stdout


def test_verify_fails_on_another_model(tuned, tmp_path):
    other = make_example("tiny_encoder", tmp_path / "m.onnx", seed=5)
    assert "another model" in refused("verify", other, "--kernels", tuned)


def test_run_answers_as_the_library_does(encoder, tuned, inputs, tmp_path):
    import autosched

    files = ("--inputs", inputs, "--outputs", tmp_path / "out.npz")
    result = call("run", encoder, "--kernels", tuned, *files, "--json")
    assert result.exit_code == 0, result.stderr
    want = autosched.load(tuned).run(example_inputs("tiny_encoder", 1, 16))
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert set(found.files) == set(want) == set(json.loads(result.stdout)["arrays"])
        for name, array in want.items():
            np.testing.assert_array_equal(found[name], array)


def test_run_refuses_bad_inputs(encoder, tuned, inputs, tmp_path):
    def run(path: object, out: object = tmp_path / "out.npz") -> str:
        return refused("run", encoder, "--kernels", tuned, "--inputs", path, "--outputs", out)

    good = example_inputs("tiny_encoder", 1, 16)
    assert "can't be read" in run(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no arrays here")
    assert "no .npz file" in run(tmp_path / "text.npz")
    np.savez(tmp_path / "objects.npz", input_ids=np.array([{}], object), allow_pickle=True)
    assert "no .npz file of plain arrays" in run(tmp_path / "objects.npz")
    np.savez(tmp_path / "few.npz", input_ids=good["input_ids"])
    assert "missing: attention_mask" in run(tmp_path / "few.npz")
    np.savez(tmp_path / "long.npz", **example_inputs("tiny_encoder", 1, 17))
    assert "[1, 16] is expected" in run(tmp_path / "long.npz")
    assert "can't be written" in run(inputs, "/proc/out.npz")


def test_a_changed_kernel_file_is_refused(encoder, tuned, tmp_path):
    subprocess.run(["cp", "-r", tuned, tmp_path / "kernels"], check=True)
    library = next((tmp_path / "kernels").glob("*/kernels/*.so"))
    data = bytearray(library.read_bytes())
    data[len(data) // 2] ^= 1
    library.write_bytes(data)
    told = refused("verify", encoder, "--kernels", tmp_path / "kernels")
    assert library.name in told and "was changed" in told


def test_a_folder_that_is_no_package(encoder, tmp_path):
    assert "holds no kernel package" in refused("bench", encoder, "--kernels", tmp_path)
    assert "is no folder" in refused("verify", encoder, "--kernels", tmp_path / "none")


@pytest.mark.slow
def test_bench_pairs_the_model_and_its_tasks(encoder, tuned):
    result = call("bench", encoder, "--kernels", tuned, "--rounds", 1, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    whole = found["end_to_end"]
    assert whole["ours_ms"] > 0 and whole["peer_ms"] > 0
    assert whole["speedup"] == pytest.approx(whole["peer_ms"] / whole["ours_ms"], rel=0.5)
    assert {t["name"] for t in found["tasks"]}
    assert sum(t["share"] for t in found["tasks"]) == pytest.approx(1)


def test_bench_names_its_peers(encoder, tuned):
    told = refused("bench", encoder, "--kernels", tuned, "--against", "tensorrt")
    assert "onnxruntime" in told
