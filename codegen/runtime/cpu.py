"""What this machine's CPU has: features by LLVM's names, and cores this process may use."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from .errors import UnsupportedMachineError

# /proc/cpuinfo's spelling where it differs from LLVM's by more than separators.
_KERNEL_SPELLING: Mapping[str, str] = {
    "sse3": "pni", "lzcnt": "abm", "sahf": "lahf_lm", "bmi": "bmi1", "pclmul": "pclmulqdq",
    "rdrnd": "rdrand", "sha": "sha_ni", "prfchw": "3dnowprefetch", "x87": "fpu", "crc32": "sse4_2",
    "neon": "asimd", "dotprod": "asimddp", "fullfp16": "asimdhp",
}  # fmt: skip
_SEPARATORS = str.maketrans("", "", "_-.")
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # Linux, x86-64


def platform_name() -> str:
    """Operating system and architecture, as manifests write them: `linux-x86_64`."""
    return f"{sys.platform}-{platform.machine().lower()}"


@functools.cache
def _flags(root: Path = Path("/")) -> frozenset[str]:
    """Flags of the first processor, separators removed."""
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(flag.translate(_SEPARATORS) for flag in value.split())
    return frozenset()


def missing_features(needed: Iterable[str], root: Path = Path("/")) -> tuple[str, ...]:
    """The needed features, by LLVM's names, that this CPU lacks; sorted."""
    flags = _flags(root)
    return tuple(
        sorted(
            name for name in set(needed)
            if _KERNEL_SPELLING.get(name, name).translate(_SEPARATORS) not in flags
        )
    )  # fmt: skip


def allow_amx() -> None:
    """Asks Linux for the tile registers: without that, the first AMX instruction is fatal."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise UnsupportedMachineError(
            f"Linux does not grant the AMX tile registers ({reason}); kernels that need them "
            "can't run here"
        )


def usable_cores(root: Path = Path("/")) -> int:
    """Physical cores this process may run on, by its affinity mask and its cgroup's quota."""
    if hasattr(os, "sched_getaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
    else:
        cpus = list(range(os.cpu_count() or 1))
    cores = {core_of(root, cpu) for cpu in cpus}
    return max(1, min(len(cores), _quota(root)))


def core_of(root: Path, cpu: int) -> tuple[str, str]:
    """(package, core) of a logical CPU; itself where sysfs says nothing."""
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    try:
        package = (topology / "physical_package_id").read_text().strip()
        return package, (topology / "core_id").read_text().strip()
    except OSError:
        return "", str(cpu)


def _quota(root: Path) -> int:
    """Whole CPUs that cgroup v2 grants, at least one; unlimited where it says nothing."""
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or "max"
        return sys.maxsize
