"""Where a store may live: a path in, the checked path out, or a StoreError that says why not.

SQLite's write-ahead log needs shared memory and locks that network filesystems do not keep, so
those are refused by the name of their type before the file is touched.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil

STORE_NAME = "records.sqlite"

NETWORK_FILESYSTEMS = frozenset({
    "9p", "afs", "afpfs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs2", "glusterfs", "gpfs",
    "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb2", "smb3",
    "smbfs", "webdav", "wekafs",
    "fuse.ceph", "fuse.gcsfuse", "fuse.glusterfs", "fuse.juicefs", "fuse.rclone", "fuse.s3fs",
    "fuse.sshfs", "fuse.davfs2", "fuse.goofys", "fuse.mount-s3",
})


class StoreError(Exception):
    """The store cannot do what was asked: one message with the cause and the way out."""


def default_path() -> Path:
    """The platform's place for user data, as platformdirs knows it."""
    import platformdirs  # not needed where a path is given

    return Path(platformdirs.user_data_dir("autosched", appauthor=False)) / STORE_NAME


def filesystem_of(path: Path, mounts: Iterable[tuple[str, str]] | None = None) -> str:
    """Type name of the filesystem that holds `path` (links resolved); "" where unknown.

    mounts: (mount point, type) in mounting order; the system's own by default.
    """
    table = _mounts() if mounts is None else mounts
    real = path.resolve()
    best, kind = -1, ""
    for point, fstype in table:
        depth = len(Path(point).parts)
        # Of two mounts on one point the later hides the earlier, hence >=.
        if real.is_relative_to(point) and depth >= best:
            best, kind = depth, fstype
    return kind


def _mounts() -> list[tuple[str, str]]:
    return [(p.mountpoint, p.fstype) for p in psutil.disk_partitions(all=True)]


def checked_path(path: Path | str | None,
                 mounts: Iterable[tuple[str, str]] | None = None) -> Path:
    """`path` (default_path() for None), absolute, with its folder made.

    Raises: StoreError for a network filesystem, a folder as path, or a place that is not writable.
    """
    place = Path(path).expanduser().absolute() if path is not None else default_path()
    kind = filesystem_of(place, mounts)
    if kind.lower() in NETWORK_FILESYSTEMS:
        raise StoreError(
            f"the record store {place} lies on a network filesystem ({kind}), where two tuners "
            "could corrupt it. Name a place on a local disk (--store PATH), and share records "
            "by exporting and importing them")
    if place.is_dir():
        raise StoreError(f"the record store {place} is a folder: name a file (--store PATH)")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot make the folder of the record store {place}: {error.strerror}. "
            "Name another place (--store PATH)") from error
    return place
