"""A package's folder in, its checked manifest out: what is in it, and the hash of every file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from .cpu import allow_amx, missing_features, platform_name
from .errors import ChangedFileError, PackageError, UnsupportedMachineError

FORMAT = 1
FILE = "manifest.json"
ANY_PLATFORM = "any"  # of packages without native code


def canonical(data: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest_of(data: Mapping[str, Any]) -> str:
    """SHA-256 of a manifest without its `digest`: names every byte of the package."""
    rest = {key: value for key, value in data.items() if key != "digest"}
    return hashlib.sha256(canonical(rest)).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def find(folder: Path) -> Path:
    """The folder that holds the manifest: the one given, or the only one right below it."""
    if not folder.is_dir():
        raise PackageError(f"{folder} is no folder")
    if (folder / FILE).is_file():
        return folder
    below = sorted(path.parent for path in folder.glob(f"*/{FILE}"))
    if len(below) != 1:
        what = "no kernel package" if not below else f"{len(below)} kernel packages"
        raise PackageError(f"{folder} holds {what}; give the folder with {FILE}")
    return below[0]


@dataclass(frozen=True, eq=False)
class Manifest:
    """A package's facts. `data` is manifest.json as it was read."""

    root: Path
    data: Mapping[str, Any]

    @property
    def digest(self) -> str:
        digest: str = self.data["digest"]
        return digest

    def path(self, name: str) -> Path:
        """Where a file of the package lies; the file itself is not read."""
        parts = PurePosixPath(name)
        if name not in self.data["files"] or parts.is_absolute() or ".." in parts.parts:
            raise ChangedFileError(f"{self.root} has no file {name!r} in its manifest")
        return self.root / parts

    def checked(self, name: str) -> Path:
        """The path of a file whose content is what the manifest says."""
        path = self.path(name)
        if not path.is_file():
            raise ChangedFileError(f"{path} is missing: write or install the package again")
        if hash_file(path) != self.data["files"][name]:
            raise ChangedFileError(
                f"{path} was changed after the package was written; it is not loaded. "
                "Write or install the package again"
            )
        return path

    def library(self, kernel: Mapping[str, Any]) -> str:
        """The name of the best library of a kernel that this CPU can run."""
        lacking: list[tuple[str, ...]] = []
        for library in kernel["libraries"]:
            missing = missing_features(library["cpu_features"])
            if not missing:
                if "amx-tile" in library["cpu_features"]:
                    allow_amx()
                name: str = library["file"]
                return name
            lacking.append(missing)
        fewest = min(lacking, key=len)
        raise UnsupportedMachineError(
            f"{kernel['public_name']} was built for a CPU with {', '.join(fewest)}, which this "
            "one lacks: tune again with --target for this machine"
        )


def read(folder: Path | str, expect_digest: str | None = None) -> Manifest:
    """The manifest of the package in `folder`, consistent in itself and fit for this platform.

    Args: expect_digest: the digest, or at least 16 first digits of it, that the caller got from
        someone trusted; any other package is refused.
    """
    root = find(Path(folder))
    try:
        data = json.loads((root / FILE).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ChangedFileError(f"{root / FILE} can't be read: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PackageError(
            f"{root / FILE} is no manifest of format {FORMAT}: use the autosched that wrote it"
        )
    digest = digest_of(data)
    if digest != data.get("digest"):
        raise ChangedFileError(f"{root / FILE} was changed after the package was written")
    if expect_digest is not None and not _same(digest, expect_digest):
        raise ChangedFileError(f"{root} has digest {digest}, but {expect_digest} is expected")
    if data["platform"] not in (platform_name(), ANY_PLATFORM):
        raise UnsupportedMachineError(
            f"{root} holds kernels for {data['platform']}, and this is {platform_name()}"
        )
    return Manifest(root, data)


def _same(digest: str, expected: str) -> bool:
    wanted = expected.strip().lower().removeprefix("sha256:")
    return len(wanted) >= 16 and digest.startswith(wanted)


def check_all(manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """Raises ChangedFileError for the first of the files (default: all) that was changed."""
    for name in sorted(manifest.data["files"] if names is None else names):
        manifest.checked(name)
