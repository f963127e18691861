"""The package writer: what is on disk, all or nothing, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import kernels
import numpy as np
import pytest

from autosched.codegen.artifact import Build
from autosched.codegen.package import (
    WriteError,
    check_folder,
    distinct,
    module_name,
    write_package,
)
from autosched.codegen.runtime.errors import PackageError
from autosched.codegen.runtime.manifest import hash_file, read
from autosched.codegen.runtime.model import load


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages") / "tuned"
    return write_package(kernels.chain(), folder, "chain").module


def test_the_manifest_names_every_file_by_its_hash(package: Path) -> None:
    data = read(package.parent).data
    files = {
        str(path.relative_to(package)): hash_file(path)
        for path in package.rglob("*") if path.is_file() and path.name != "manifest.json"
    }  # fmt: skip
    assert data["files"] == files
    assert {"lib/libtvm_runtime.so", "lib/LICENSE", "lib/NOTICE", "weights.bin"} <= set(files)


def test_the_same_artifact_has_the_same_digest(package: Path, tmp_path: Path) -> None:
    again = write_package(kernels.chain(), tmp_path / "again", "chain")
    assert again.digest == read(package).digest


def test_weights_are_aligned_and_equal_ones_are_written_once(package: Path) -> None:
    table = read(package).data["weights"]
    offsets = {name.partition("@")[0]: row["offset"] for name, row in table.items()}
    assert all("@" in name for name in table)  # nothing reads the raw ones
    assert offsets["w0"] == offsets["w2"] != offsets["w1"]
    assert all(offset % 64 == 0 for offset in offsets.values())


def test_kernel_sources_say_what_they_are(package: Path) -> None:
    (source,) = (package / "kernels").glob("scale_add_serial*.py")
    text = source.read_text()
    for part in ("y = 2*x + w", '"rows": "serial"', "3.0 us", "onnxruntime: 6.0 us", "2.00 times"):
        assert part in text
    assert text.endswith("def scale_add(): ...\n")


@pytest.mark.parametrize("make", ["full", "file", "link", "no place"])
def test_a_folder_that_can_not_be_written_is_refused(tmp_path: Path, make: str) -> None:
    folder = tmp_path / "out"
    if make == "full":
        folder.mkdir()
        (folder / "mine").write_text("precious")
    elif make == "file":
        folder.write_text("precious")
    elif make == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder = Path("/proc/no/such/place")
    words = {"full": "not empty", "file": "is a file", "link": "is a link", "no place": "writ"}
    with pytest.raises(WriteError, match=words[make]):
        write_package(kernels.chain(), folder, "chain")
    if make == "full":
        assert (folder / "mine").read_text() == "precious"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(WriteError, match="not writable"):
        check_folder(tmp_path / "out")


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_package(kernels.chain(), tmp_path / "out", "chain")
    assert load(tmp_path / "out").inputs[0].name == "x"


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    def full() -> np.ndarray:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    artifact = kernels.chain()
    artifact = replace(artifact, weights={**artifact.weights, "w2": full})
    with pytest.raises(WriteError, match="No space left"):
        write_package(artifact, tmp_path / "out", "chain")
    assert list(tmp_path.iterdir()) == []


def test_a_bug_leaves_nothing_behind(tmp_path: Path) -> None:
    artifact = kernels.chain()
    artifact = replace(artifact, weights={**artifact.weights, "w1": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="reshape"):
        write_package(artifact, tmp_path / "out", "chain")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["", "../up", "a/b", "Upper", "9lives", "with space"])
def test_names_of_packages_are_modules(name: str, tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="can't be a module's name"):
        write_package(kernels.chain(), tmp_path / "out", name)
    assert module_name(module_name(name)) == module_name(name)


def test_texts_of_users_stay_texts(tmp_path: Path) -> None:
    evil = 'x"""\nraise SystemExit(3)\n"""\\'
    artifact = replace(kernels.chain(), kernels=(
        kernels.scale_add("parallel", doc=evil), kernels.scale_add("serial")
    ))  # fmt: skip
    written = write_package(artifact, tmp_path / "out", "chain", summary=evil)
    code = "import chain; print(chain.scale_add_parallel.__doc__)"
    run = subprocess.run([sys.executable, "-c", code], cwd=written.folder, capture_output=True,
                         text=True, check=True)  # fmt: skip
    assert run.stdout.startswith('x"""\nraise SystemExit(3)')


def test_kernels_that_look_alike_get_a_number() -> None:
    one, two = kernels.scale_add("serial"), kernels.scale_add("serial", key="other")
    assert [k.public_name for k in distinct([one, two])] == [
        "scale_add_serial", "scale_add_serial_2"
    ]  # fmt: skip


def test_a_manifest_that_leads_out_of_the_package_is_refused(package: Path) -> None:
    manifest = read(package)
    manifest.data["files"]["../../secret"] = "0" * 64
    for name in ("../../secret", "no/such/file"):
        with pytest.raises(PackageError, match="has no file"):
            manifest.checked(name)


def test_a_cpu_without_the_features_gets_the_fallback_or_a_clear_refusal(tmp_path: Path) -> None:
    serial = kernels.scale_add("serial")
    other = kernels.scale_add(
        "parallel", cpu_features=("avx9000",), library=b"never loaded",
        fallbacks=(Build(kernels.library("scale_add_parallel", "parallel"), ("sse2",)),),
    )  # fmt: skip
    artifact = replace(kernels.chain(), kernels=(serial, other))
    x = np.ones((kernels.M, kernels.N), np.float32)
    model = load(write_package(artifact, tmp_path / "fallback", "chain").folder)
    assert np.allclose(model.run({"x": x})["out"], kernels.chain_result(x))
    artifact = replace(artifact, kernels=(serial, replace(other, fallbacks=())))
    write_package(artifact, tmp_path / "refused", "chain")
    with pytest.raises(PackageError, match="avx9000, which this one lacks: tune again"):
        load(tmp_path / "refused")


@pytest.mark.slow
def test_pip_installs_it(package: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check"]
    offline = ["--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *offline, "-w", tmp_path, package.parent], check=True,
                   capture_output=True)  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    assert "linux" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert all(f"chain/{name}" in names for name in read(package).data["files"])
    target = tmp_path / "site"
    subprocess.run([*pip, "install", *offline, "--target", target, wheel], check=True,
                   capture_output=True)  # fmt: skip
    code = (
        "import chain, numpy, json\n"
        "x = numpy.ones((37, 50), 'float32')\n"
        "print(json.dumps([chain.__file__, float(chain.load().run({'x': x})['out'].sum())]))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=target, capture_output=True, text=True,
                         check=True)  # fmt: skip
    where, total = json.loads(run.stdout)
    assert Path(where).is_relative_to(target)
    want = kernels.chain_result(np.ones((kernels.M, kernels.N), np.float32)).sum()
    assert abs(total - want) < 1e-3 * abs(want)
