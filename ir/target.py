"""Name of a target or the machine itself in, the facts that decide schedules out: `Target`.

Every number carries its source, because a model that is to move to another device must know
what was read, what a vendor says and what is only assumed.
"""

from __future__ import annotations

import functools
import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

KIB, MIB = 1024, 1024 * 1024
# The fields of a Target that are facts of a device, each with a row in `sources`.
FACTS = (
    "device", "features", "cores", "threads", "lanes", "registers", "fma", "clock_ghz", "l1_bytes",
    "l2_bytes", "l3_bytes", "line_bytes", "dram_gbs", "peak_gflops",
)  # fmt: skip

# ---- tables: features, levels, vector units ----------------------------------------------------

# The x86-64 levels of the psABI, each on top of the one before; names as LLVM spells them.
_LEVELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("x86-64-v1", ("cmov", "cx8", "fxsr", "mmx", "sse", "sse2")),
    ("x86-64-v2", ("cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3")),
    ("x86-64-v3", ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave")),
    ("x86-64-v4", ("avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")),
)
# Beyond the levels, the features that change which kernel is best.
_BEYOND = (
    "amx-bf16", "amx-int8", "amx-tile", "avx512bf16", "avx512fp16", "avx512vbmi", "avx512vnni",
    "avxvnni", "gfni",
)  # fmt: skip
_ARM = ("bf16", "dotprod", "fullfp16", "i8mm", "neon", "sve", "sve2")
# /proc/cpuinfo's spelling where it is not LLVM's.
_KERNEL_SPELLING = {
    "cx16": "cx16", "lahf_lm": "sahf", "pni": "sse3", "sse4_1": "sse4.1", "sse4_2": "sse4.2",
    "bmi1": "bmi", "abm": "lzcnt", "amx_bf16": "amx-bf16", "amx_int8": "amx-int8",
    "amx_tile": "amx-tile", "avx512_bf16": "avx512bf16", "avx512_fp16": "avx512fp16",
    "avx512_vnni": "avx512vnni", "avx_vnni": "avxvnni", "asimd": "neon", "asimddp": "dotprod",
    "asimdhp": "fullfp16",
}  # fmt: skip


def _cumulative() -> dict[str, tuple[str, ...]]:
    out: dict[str, tuple[str, ...]] = {}
    have: tuple[str, ...] = ()
    for name, extra in _LEVELS:
        have = tuple(sorted((*have, *extra)))
        out[name] = have
    return out


X86_LEVELS: Mapping[str, tuple[str, ...]] = _cumulative()


@dataclass(frozen=True)
class _Unit:
    """A vector unit: the feature it needs, fp32 lanes, registers, fused multiply-adds a cycle."""

    feature: str
    lanes: int
    registers: int
    fma: int


# Best first. The multiply-adds are those of common cores; `_FMA512` has the exceptions.
_UNITS = (
    _Unit("avx512f", 16, 32, 2),
    _Unit("fma", 8, 16, 2),
    _Unit("avx", 8, 16, 1),
    _Unit("sse2", 4, 16, 1),
    _Unit("neon", 4, 32, 2),
)

# 512-bit multiply-adds a cycle: (vendor, family, models or none for all) -> count and source.
_FMA512: tuple[tuple[str, int, tuple[int, ...], int, str], ...] = (
    ("AuthenticAMD", 25, (), 1, "Zen 4 optimisation guide: two 256-bit FMA pipes"),
    ("AuthenticAMD", 26, (), 2, "Zen 5 optimisation guide: two 512-bit FMA pipes"),
    ("GenuineIntel", 6, (106, 108, 85, 143, 173, 174, 207), 2, "Intel: Xeon ports 0 and 5"),
    ("GenuineIntel", 6, (), 1, "Intel: client cores fuse ports 0 and 1 for 512 bits"),
)

# The boost clock of parts whose virtual machines show the base clock alone: vendor, family, models,
# GHz and source.
_BOOST: tuple[tuple[str, int, tuple[int, ...], float, str], ...] = (
    ("AuthenticAMD", 25, tuple(range(16, 32)), 3.7, "AMD EPYC 9004 data sheets: boost clock"),
)

# fp32 rate times this, by dtype, where the feature is there (first match); sources: Intel's and
# AMD's instruction tables. AMX: 16 x 16 x 32 multiply-adds in 16 cycles, against fp32's 32.
_SPEEDUPS: tuple[tuple[str, str, float], ...] = (
    ("float64", "", 0.5),
    ("float32", "", 1.0),
    ("bfloat16", "amx-bf16", 16.0),
    ("bfloat16", "avx512bf16", 2.0),
    ("bfloat16", "", 1.0),
    ("float16", "avx512fp16", 2.0),
    ("float16", "fullfp16", 2.0),
    ("float16", "", 1.0),
    ("int8", "amx-int8", 32.0),
    ("int8", "avx512vnni", 4.0),
    ("int8", "avxvnni", 4.0),
    ("int8", "dotprod", 4.0),
    ("int8", "", 1.0),
)

# Assumed where sysfs says nothing: what most cores of the last ten years have at least.
_ASSUMED_CACHE = {1: 32 * KIB, 2: 512 * KIB, 3: 8 * MIB}
_ASSUMED_CLOCK_GHZ = 2.5
_CORE_GBS, _SOCKET_GBS = 12.0, 200.0  # one core rarely streams more; a socket has 8 channels


class TargetError(ValueError):
    """The target asked for is unknown, or does not fit this machine: a user's error."""


@dataclass(frozen=True)
class Target:
    """What schedules are made for. `features` are LLVM's names, sorted.

    cores: physical cores this process may use (SMs of a GPU); threads: logical ones.
    lanes: fp32 elements of a vector register (of a warp); registers: vector registers a core.
    fma: vector multiply-adds a cycle and core. l1 and l2 are per core, l3 is what one
    process may fill; of a GPU, l1 is shared memory per block and l2 the device's cache.
    sources: (field, where its value comes from).
    """

    name: str
    kind: str  # "cpu" | "gpu"
    arch: str  # "x86_64" | "aarch64" | "sm_90"
    device: str
    features: tuple[str, ...]
    cores: int
    threads: int
    lanes: int
    registers: int
    fma: int
    clock_ghz: float
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    line_bytes: int
    dram_gbs: float
    peak_gflops: tuple[tuple[str, float], ...]
    sources: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """Stable name for the store: what changes compiled code or the device, no more."""
        return "/".join((self.kind, self.arch, self.device, "+".join(self.features)))

    def peak(self, dtype: str = "float32") -> float:
        """GFLOP/s of all cores for `dtype`; a type without a row of its own counts as fp32."""
        table = dict(self.peak_gflops)
        return table.get(dtype, table["float32"])

    def source(self, field: str) -> str:
        return dict(self.sources)[field]

    def lacks(self, host: Target) -> tuple[str, ...]:
        """The features that code for this target needs and `host` does not have."""
        return tuple(f for f in self.features if f not in host.features)


# ---- the machine -------------------------------------------------------------------------------


def _read(path: Path) -> str:
    """Text of a file of /proc or /sys, or "" where this kernel does not have it."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _parse_cpuinfo(text: str) -> dict[str, str]:
    """The fields of the first processor."""
    first = text.split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)", text)
    if not match:
        return 0
    return int(match[1]) * {"": 1, "K": KIB, "M": MIB, "G": KIB * MIB}[match[2]]


def _ids(text: str) -> frozenset[int]:
    """{0, 1, 2, 5} of "0-2,5"."""
    out: set[int] = set()
    for part in filter(None, text.split(",")):
        low, _, high = part.partition("-")
        out.update(range(int(low), int(high or low) + 1))
    return frozenset(out)


def _caches(cpus: Path, mine: Iterable[int]) -> dict[int, int]:
    """Bytes by level: levels 1 and 2 of one core, level 3 of every instance we may use."""
    sizes: dict[int, int] = {}
    shared: dict[tuple[int, frozenset[int]], int] = {}
    for cpu in mine:
        for index in sorted((cpus / f"cpu{cpu}" / "cache").glob("index*")):
            if _read(index / "type") == "Instruction":
                continue
            level, size = _read(index / "level"), _bytes(_read(index / "size"))
            if not (level.isdigit() and size):
                continue
            sizes.setdefault(int(level), size)
            shared[int(level), _ids(_read(index / "shared_cpu_list"))] = size
    if 3 in sizes:
        sizes[3] = sum(size for (level, _), size in shared.items() if level == 3)
    return sizes


def _quota(cgroup: str) -> float:
    """CPUs of "200000 100000"; infinity where no quota is set."""
    parts = cgroup.split()
    if len(parts) != 2 or parts[0] == "max":
        return float("inf")
    return int(parts[0]) / int(parts[1])


def _usable(root: Path) -> tuple[int, ...]:
    if root == Path("/") and hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    online = _ids(_read(root / "sys/devices/system/cpu/online"))
    return tuple(sorted(online)) or tuple(range(os.cpu_count() or 1))


def _clock(info: Mapping[str, str], cpu: Path) -> tuple[float, str]:
    top = _read(cpu / "cpufreq/cpuinfo_max_freq")
    if top.isdigit():
        return round(int(top) / 1e6, 2), "sysfs cpuinfo_max_freq"
    named = tuple(info.get(f, "") for f in ("vendor_id", "cpu family", "model"))
    for vendor, family, models, ghz, source in _BOOST:
        if named[:2] == (vendor, str(family)) and named[2] in map(str, models):
            return ghz, source
    if match := re.search(r"@ *([\d.]+) *GHz", info.get("model name", "")):
        return float(match[1]), "base clock in the model's name"
    if re.fullmatch(r"[\d.]+", info.get("cpu MHz", "")):
        # The base clock of a virtual machine; boost is invisible. One decimal, to be stable.
        return round(float(info["cpu MHz"]) / 1e3, 1), "/proc/cpuinfo cpu MHz"
    return _ASSUMED_CLOCK_GHZ, "assumed"


def _features(info: Mapping[str, str]) -> tuple[str, ...]:
    flags = (info.get("flags") or info.get("Features") or "").split()
    known = {*X86_LEVELS["x86-64-v4"], *_BEYOND, *_ARM}
    return tuple(sorted({_KERNEL_SPELLING.get(f, f) for f in flags} & known))


def _fma512(info: Mapping[str, str]) -> tuple[int, str]:
    vendor, family = info.get("vendor_id", ""), info.get("cpu family", "")
    for row_vendor, row_family, models, count, source in _FMA512:
        if (vendor, family) == (row_vendor, str(row_family)) and (
            not models or info.get("model", "") in map(str, models)
        ):
            return count, source
    return 1, "assumed: one 512-bit multiply-add a cycle"


def _device(info: Mapping[str, str], arch: str) -> str:
    """Model of the CPU, without commas, slashes and clock: part of a key."""
    name = re.sub(r"\(R\)|\(TM\)|CPU|@.*|,.*", " ", info.get("model name", "")) or arch
    ids = [info[k] for k in ("cpu family", "model", "CPU implementer", "CPU part") if k in info]
    return " ".join((*re.sub(r"[^\w.+-]+", " ", name).split(), ".".join(ids))).strip()


def _cpu(name: str, features: tuple[str, ...] | None, root: Path) -> Target:
    """The CPU under `root`, restricted to `features` where they are given."""
    info = _parse_cpuinfo(_read(root / "proc/cpuinfo"))
    arch = platform.machine().lower().replace("amd64", "x86_64").replace("arm64", "aarch64")
    baseline = ("neon",) if arch == "aarch64" else X86_LEVELS["x86-64-v1"]
    found = _features(info) or baseline
    chosen = found if features is None else features
    unit = next((u for u in _UNITS if u.feature in chosen), _Unit("", 1, 16, 1))
    fma, fma_source = unit.fma, "assumed for " + (unit.feature or "scalar code")
    if unit.feature == "avx512f":
        fma, fma_source = _fma512(info)
    cpus, mine = root / "sys/devices/system/cpu", _usable(root)
    quota = _quota(_read(root / "sys/fs/cgroup/cpu.max"))
    siblings = {_read(cpus / f"cpu{n}/topology/thread_siblings_list") or str(n) for n in mine}
    threads = max(1, int(min(len(mine), quota)))
    cores = max(1, int(min(len(siblings), quota)))
    caches = _caches(cpus, mine)
    clock, clock_source = _clock(info, cpus / f"cpu{mine[0]}")
    rate = cores * clock * unit.lanes * 2 * fma
    peaks: dict[str, float] = {}
    for dtype, feature, factor in _SPEEDUPS:
        if not feature or feature in chosen:
            peaks.setdefault(dtype, round(rate * factor, 1))
    read = "/proc/cpuinfo" if info else "baseline of the architecture"
    sysfs = {n: "sysfs" if n in caches else "assumed" for n in (1, 2, 3)}
    size = {n: caches.get(n, _ASSUMED_CACHE[n]) for n in (1, 2, 3)}
    return Target(
        name=name, kind="cpu", arch=arch, device=_device(info, arch), features=chosen,
        cores=cores, threads=threads, lanes=unit.lanes, registers=unit.registers, fma=fma,
        clock_ghz=clock, l1_bytes=size[1], l2_bytes=size[2], l3_bytes=size[3],
        line_bytes=int(info.get("cache_alignment", "64")),
        dram_gbs=min(_SOCKET_GBS, cores * _CORE_GBS), peak_gflops=tuple(sorted(peaks.items())),
        sources=(
            ("features", read if features is None else "x86-64 psABI"),
            ("device", read), ("cores", "affinity, cgroup quota and sysfs topology"),
            ("threads", "affinity and cgroup quota"), ("lanes", "width of the widest unit"),
            ("registers", "architecture manual"), ("fma", fma_source),
            ("clock_ghz", clock_source), ("l1_bytes", sysfs[1]), ("l2_bytes", sysfs[2]),
            ("l3_bytes", sysfs[3]), ("line_bytes", "/proc/cpuinfo, else assumed"),
            ("dram_gbs", "assumed: 12 GB/s a core, 200 GB/s a socket"),
            ("peak_gflops", "cores * clock * lanes * 2 * fma, times the dtype's factor"),
        ),
    )  # fmt: skip


# ---- GPUs --------------------------------------------------------------------------------------

_H200 = "NVIDIA H200 datasheet and Hopper tuning guide"
_A100 = "NVIDIA A100 datasheet and Ampere tuning guide"
GPU_OPTIONS = ("tf32",)  # asked for by name: float32 products with 10 bits of mantissa
GPUS: dict[str, Target] = {
    "sm_90": Target(
        name="sm_90", kind="gpu", arch="sm_90", device="NVIDIA H200",
        features=("bf16", "fp8", "tma", "wgmma"), cores=132, threads=132 * 2048, lanes=32,
        registers=65536, fma=4, clock_ghz=1.98, l1_bytes=227 * KIB, l2_bytes=50 * MIB,
        l3_bytes=0, line_bytes=128, dram_gbs=4800.0,
        peak_gflops=(("bfloat16", 989e3), ("float16", 989e3), ("float32", 67e3),
                     ("float64", 34e3), ("float8_e4m3", 1979e3), ("float8_e5m2", 1979e3),
                     ("int8", 1979e3)),
        sources=tuple((fact, _H200) for fact in FACTS),
    ),
    "sm_80": Target(
        name="sm_80", kind="gpu", arch="sm_80", device="NVIDIA A100 SXM 80GB",
        features=("bf16",), cores=108, threads=108 * 2048, lanes=32, registers=65536, fma=2,
        clock_ghz=1.41, l1_bytes=163 * KIB, l2_bytes=40 * MIB, l3_bytes=0, line_bytes=128,
        dram_gbs=2039.0,
        peak_gflops=(("bfloat16", 312e3), ("float16", 312e3), ("float32", 19.5e3),
                     ("float64", 9.7e3), ("int8", 624e3)),
        sources=tuple((fact, _A100) for fact in FACTS),
    ),
}  # fmt: skip


# ---- entry points ------------------------------------------------------------------------------


@functools.lru_cache(maxsize=8)
def host_target(root: Path = Path("/")) -> Target:
    """The CPU this process runs on; `root` is where /proc and /sys are found."""
    return _cpu("cpu", None, root)


def parse_target(text: str, root: Path = Path("/")) -> Target:
    """`auto`, `cpu`, `cpu:x86-64-v3`, `sm_90` or `sm_90+tf32` as a Target; core counts and caches
    of a CPU level are this machine's. Raises TargetError, which names what is known."""
    if text in ("auto", "cpu"):
        return host_target(root)
    kind, _, level = text.partition(":")
    if kind == "cpu" and level in X86_LEVELS:
        if platform.machine().lower() not in ("x86_64", "amd64"):
            raise TargetError(f"target {text!r}: this machine is {platform.machine()}; use 'cpu'")
        return _cpu(text, X86_LEVELS[level], root)
    name, _, option = text.partition("+")
    if name in GPUS and option in ("", *GPU_OPTIONS):
        gpu = GPUS[name]
        extra = (option,) if option else ()
        return replace(gpu, name=text, features=tuple(sorted((*gpu.features, *extra))))
    known = ["auto", "cpu", *(f"cpu:{name}" for name in X86_LEVELS), *sorted(GPUS)]
    known += [f"{gpu}+{option}" for gpu in sorted(GPUS) for option in GPU_OPTIONS]
    raise TargetError(f"unknown target {text!r}; known targets: {', '.join(known)}")
