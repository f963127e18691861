"""Runs a module of autosched from a checkout that is not installed.

    python tools/bootstrap.py autosched.tools.gpu_campaign --out results

A folder of links stands in for the installed package: each folder of the checkout where its
module name says. Workers that the module starts find it too, through PYTHONPATH.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def link_farm(root: Path, place: Path) -> None:
    """Makes `place` a folder from which the packages of the project in `root` are imported."""
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))
    folders: dict[str, str] = project["tool"]["setuptools"]["package-dir"]
    for name in sorted(folders, key=len):
        target = place.joinpath(*name.split("."))
        if "." in name:
            target.symlink_to(root / folders[name], target_is_directory=True)
            continue
        # A real folder for the top, since its subpackages lie elsewhere.
        target.mkdir(parents=True)
        for path in (root / folders[name]).iterdir():
            if path.name != "__pycache__":
                (target / path.name).symlink_to(path)
    facts = project["project"]
    info = place / f"{facts['name']}-{facts['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {facts['name']}\nVersion: {facts['version']}\n", "utf-8"
    )


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="autosched-links-") as folder:
        link_farm(ROOT, Path(folder))
        known = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([folder, *([known] if known else [])])
        # The working folder stays out of the way: a checkout has a folder of the package's name.
        env = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
        return subprocess.run([sys.executable, "-m", *argv], env=env).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
