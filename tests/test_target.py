"""Targets: read from a fake machine, parsed by name, keyed stably, refused clearly."""

from __future__ import annotations

import itertools
import platform
from pathlib import Path

import pytest

from autosched.ir.target import FACTS, GPUS, X86_LEVELS, TargetError, host_target, parse_target

ON_X86 = platform.machine().lower() in ("x86_64", "amd64")
needs_x86 = pytest.mark.skipif(not ON_X86, reason="reads x86 tables of the running machine")

V3 = (
    "cmov cx8 fxsr mmx sse sse2 cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3 "
    "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
)
V4 = V3 + " avx512f avx512bw avx512cd avx512dq avx512vl"


def machine(
    root: Path,
    flags: str = V4,
    cpus: int = 4,
    siblings: bool = False,
    model: str = "Intel(R) Xeon(R) Gold 6348 CPU @ 2.60GHz",
    quota: str = "max 100000",
) -> Path:
    """A file tree with the parts of /proc and /sys that are read."""

    def put(path: str, text: object) -> None:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    put(
        "proc/cpuinfo",
        f"processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 106\n"
        f"model name\t: {model}\ncpu MHz\t\t: 1234.567\ncache_alignment\t: 64\n"
        f"flags\t\t: {flags} unheard_of\n\nprocessor\t: 1\n",
    )
    put("sys/devices/system/cpu/online", f"0-{cpus - 1}")
    put("sys/fs/cgroup/cpu.max", quota)
    for n in range(cpus):
        base = f"sys/devices/system/cpu/cpu{n}"
        pair = f"{n % (cpus // 2)},{n % (cpus // 2) + cpus // 2}" if siblings else str(n)
        put(f"{base}/topology/thread_siblings_list", pair)
        rows = [(1, "Data", "48K", pair), (1, "Instruction", "32K", pair)]
        rows += [(2, "Unified", "1280K", pair), (3, "Unified", "42M", f"0-{cpus - 1}")]
        for i, (level, kind, size, shared) in enumerate(rows):
            for name, value in zip(
                ("level", "type", "size", "shared_cpu_list"), (level, kind, size, shared)
            ):
                put(f"{base}/cache/index{i}/{name}", value)
    return root


@needs_x86
def test_reads_a_machine(tmp_path: Path) -> None:
    t = host_target(machine(tmp_path, siblings=True))
    assert (t.threads, t.cores, t.lanes, t.registers, t.fma) == (4, 2, 16, 32, 2)
    assert (t.l1_bytes, t.l2_bytes, t.l3_bytes) == (48 * 1024, 1280 * 1024, 42 * 1024**2)
    assert t.clock_ghz == 2.6 and t.peak() == pytest.approx(2 * 2.6 * 16 * 2 * 2)
    assert set(X86_LEVELS["x86-64-v4"]) == set(t.features)  # "unheard_of" is no feature
    assert t.source("l2_bytes") == "sysfs" and "Xeon" in t.device


@needs_x86
def test_quota_of_a_container_limits_threads(tmp_path: Path) -> None:
    t = host_target(machine(tmp_path, quota="200000 100000"))
    assert (t.cores, t.threads) == (2, 2)


@needs_x86
def test_no_files_at_all_is_the_baseline(tmp_path: Path) -> None:
    t = host_target(tmp_path)
    assert t.features == X86_LEVELS["x86-64-v1"] and t.lanes == 4
    assert t.source("l2_bytes") == "assumed" and t.source("clock_ghz") == "assumed"


@needs_x86
def test_key_ignores_what_changes_between_boots(tmp_path: Path) -> None:
    a = host_target(machine(tmp_path / "a", model="Some CPU"))
    (tmp_path / "b").mkdir()
    b_root = machine(tmp_path / "b", model="Some CPU", cpus=2)
    info = b_root / "proc/cpuinfo"
    info.write_text(info.read_text().replace("1234.567", "3999.1"))
    b = host_target(b_root)
    assert a.clock_ghz != b.clock_ghz and a.key == b.key
    assert host_target(machine(tmp_path / "c", flags=V3, model="Some CPU")).key != a.key


@needs_x86
def test_levels_nest_and_restrict(tmp_path: Path) -> None:
    sets = [set(X86_LEVELS[f"x86-64-v{n}"]) for n in (1, 2, 3, 4)]
    assert all(low < high for low, high in itertools.pairwise(sets))
    root = machine(tmp_path, flags=V3)
    level3, level4 = parse_target("cpu:x86-64-v3", root), parse_target("cpu:x86-64-v4", root)
    host = parse_target("auto", root)
    assert (level3.lanes, level3.registers) == (8, 16) and level3.lacks(host) == ()
    assert "avx512f" in level4.lacks(host)


@pytest.mark.parametrize("text", ["cuda", "cpu:", "cpu:zen9", "", "sm_1"])
def test_unknown_target_names_the_known_ones(text: str) -> None:
    with pytest.raises(TargetError, match=r"unknown target .*; known targets: auto, cpu, .*sm_90"):
        parse_target(text)


def test_every_fact_has_a_source() -> None:
    for target in (parse_target("auto"), *GPUS.values()):
        assert set(dict(target.sources)) == set(FACTS)
        assert target.peak("float32") > 0 and target.peak("int64") == target.peak("float32")
        assert "," not in target.key and target.key.count("/") == 3
