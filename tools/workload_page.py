"""The collection of workloads in, docs/workloads.md out: every published system, what defines it.

    python -m autosched.tools.workload_page

Each system is a row of `SYSTEMS` with its standing. A `core` row that no workload serves, or a
workload of a row that is not there, is a fault (`faults`), which a test reports.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from autosched.datasets.workloads import Workload, workloads
from autosched.datasets.workloads.define import FEATURES, Sizes

PAGE = Path(__file__).resolve().parent.parent / "docs" / "workloads.md"
MANY = 8  # shapes of a workload that are listed one by one
FAMILIES = {
    "A": "Softmax attention",
    "B": "Sparse and approximate attention",
    "C": "Quantised attention",
    "D": "Linear attention, recurrences and state spaces",
    "E": "Quantised products",
    "F": "Structured maps, experts and clusters",
    "#": "Common kernels beside them",
}


@dataclass(frozen=True)
class System:
    """A published system: its row's code, name and standing.

    standing: core (must be served), nice (served where it needs nothing new) or out, which `note`
    explains; other notes say what of the system is left out.
    """

    code: str
    name: str
    standing: str
    note: str = ""


SYSTEMS: tuple[System, ...] = (
    System("A1", "Dense MHA, GQA, MQA", "core"),
    System("A2", "SQA: sparse query heads", "core"),
    System("A3", "MLA: latent attention", "core"),
    System("A4", "LongCA static masks", "core"),
    System("A5", "Block-sparse attention", "core"),
    System("A6", "MASFormer, sliding windows", "core"),
    System("A7", "FaViT factorised windows", "nice"),
    System("B1", "XAttention", "core"),
    System("B2", "SLA: sparse-linear attention", "core"),
    System("B3", "PAROAttention", "nice"),
    System("B4", "HyperAttention", "nice"),
    System("B5", "SEA", "out", "a convolutional predictor runs in its loop"),
    System("B6", "SCOUT", "core"),
    System("B7", "Combiner", "nice"),
    System("B8", "Tensor attention", "nice"),
    System("C1", "SageAttention2", "core"),
    System("C2", "FireQ attention", "core"),
    System("C3", "QJL", "core"),
    System("C4", "COMET and QServe KV4", "core"),
    System("C5", "ThinK", "nice"),
    System("D1", "Lightning attention, TransNormerLLM", "core"),
    System("D2", "TransNormer", "nice"),
    System("D3", "TFLA: mLSTM, both gates", "core"),
    System("D4", "GLA, ViG", "core"),
    System("D5", "DeltaNet", "core"),
    System("D6", "KDA: Kimi delta attention", "core"),
    System("D7", "DeltaProduct", "core"),
    System("D8", "LLA, Parallax", "core"),
    System("D9", "MoM: mixture of memories", "nice"),
    System("D10", "LASP-2", "core", "its form on one device"),
    System("D11", "Hydra", "core"),
    System("D12", "Mamba2, SSD", "core"),
    System("D13", "NaLaFormer", "nice"),
    System("D14", "SOFT", "nice"),
    System("D15", "InfSA", "nice"),
    System("D16", "Kernelised attention with relative positions", "nice"),
    System("D17", "EcoFormer", "nice"),
    System("D18", "HGRN", "core"),
    System("E1", "MARLIN, Sparse-Marlin", "core"),
    System("E2", "FireQ INT4 x FP8", "core"),
    System("E3", "FlexQ W6A6, W6A8", "core"),
    System("E4", "MR-GPTQ: MXFP4, NVFP4", "core"),
    System("E5", "MatGPTQ", "core"),
    System("E6", "MixLLM", "core"),
    System("E7", "ITQ3_S", "nice"),
    System("E8", "COMET W4Ax", "core"),
    System("E9", "Bipolar integers", "nice"),
    System("E10", "BitLinear of MatMul-free models", "core"),
    System("E11", "ShiftAddViT", "core"),
    System("E12", "L-Mul", "nice"),
    System("E13", "Minifloats, CrossQuant, FP4 training", "nice"),
    System("F1", "Monarch, M2", "core"),
    System("F2", "Butterfly, Walsh-Hadamard", "nice"),
    System("F3", "LoRD", "core"),
    System("F4", "FlashMoE", "core", "its form on one device"),
    System("F5", "UbiMoE", "out", "a search method, which the tuner compares with; no kernel"),
    System("F6", "Flash-KMeans", "core"),
    System("F7", "SMASH SpGEMM", "out", "sparse times sparse: the result's pattern is data"),
    System("F8", "Equivariant tensor products", "nice"),
    System("#29", "Dense products with epilogues", "core"),
    System("#42", "Grouped products", "core"),
)


def faults(found: Mapping[str, Workload]) -> tuple[str, ...]:
    """What is wrong with the table and the collection together, a line each."""
    known = {s.code for s in SYSTEMS}
    served = {code for w in found.values() for code in w.systems}
    missing = [s for s in SYSTEMS if s.standing == "core" and s.code not in served]
    strays = [(w.name, c) for w in found.values() for c in w.systems if c not in known]
    return (
        *(f"core row {s.code} ({s.name}) has no workload" for s in missing),
        *(f"workload {name} serves {code}, which is no row" for name, code in strays),
        *(f"workload {w.name} has no real shapes" for w in found.values() if not w.shapes),
    )


# ---- the page --------------------------------------------------------------------------------


def page(found: Mapping[str, Workload]) -> str:
    """The page as Markdown, the same bytes for the same collection."""
    ordered = [found[name] for name in sorted(found)]
    return "\n".join((*_head(ordered), *_systems(ordered), *_shapes(ordered))) + "\n"


def _head(ordered: list[Workload]) -> Iterator[str]:
    served = {code for w in ordered for code in w.systems}
    lengths = sorted(w.length for w in ordered)
    inside = [s for s in SYSTEMS if s.standing != "out"]
    yield from (
        "# Workloads",
        "",
        f"{len(ordered)} definitions at the algebra level serve "
        f"{sum(s.code in served for s in inside)} of {len(inside)} rows in scope; the median has "
        f"{lengths[len(lengths) // 2]} lines, the longest {lengths[-1]}.",
        "Generated by `python -m autosched.tools.workload_page`; a test keeps it current.",
        "A workload's number is the lines of its body, without the formulas that several share;",
        "`tests/test_workloads_*.py` hold an independent reference for each.",
        "",
        "## What they need",
        "",
        "| letter | feature | workloads |",
        "|---|---|---|",
    )
    for letter, meaning in FEATURES.items():
        yield f"| {letter} | {meaning} | {sum(letter in w.features for w in ordered)} |"


def _systems(ordered: list[Workload]) -> Iterator[str]:
    for family, title in FAMILIES.items():
        yield from ("", f"## {title}", "", "| row | system | standing | workloads | needs |",
                    "|---|---|---|---|---|")  # fmt: skip
        for system in SYSTEMS:
            if system.code.startswith(family):
                yield _row(system, [w for w in ordered if system.code in w.systems])


def _row(system: System, mine: list[Workload]) -> str:
    used = {letter for w in mine for letter in w.features}
    listed = ", ".join(f"[`{w.name}`](#{w.name}) {w.length}" for w in mine)
    served = "; ".join(filter(None, (listed, system.note)))
    needs = " ".join(letter for letter in FEATURES if letter in used)
    cells = (system.code, system.name, system.standing, served or "-", needs)
    return "| " + " | ".join(cells) + " |"


def _shapes(ordered: list[Workload]) -> Iterator[str]:
    """Each workload with its meaning, its file and its real sizes."""
    yield from ("", "## Definitions and real shapes")
    for w in ordered:
        file = w.define.__module__.removeprefix("autosched.").replace(".", "/") + ".py"
        yield from ("", f"### {w.name}", "", meaning(w), "",
                    f"[{file}](../{file}), rows {', '.join(w.systems)}, needs "
                    f"{' '.join(w.features)}, {w.length} lines.", "")  # fmt: skip
        yield _sizes(w.shapes)


def _sizes(shapes: Mapping[str, Sizes]) -> str:
    """Real shapes in a line: each by name with what is its own, or of many the values of each
    size, since long lists are products of few."""
    every = list(shapes.values())
    values = {k: list(dict.fromkeys(s[k] for s in every if k in s)) for s in every for k in s}
    if len(every) > MANY:
        said = (f"{key} {', '.join(map(str, found))}" for key, found in values.items())
        return f"{len(every)} shapes: {'; '.join(said)}."
    shared = {
        k: found[0] for k, found in values.items()
        if len(every) > 1 and len(found) == 1 and all(k in s for s in every)
    }  # fmt: skip
    own = [
        f"**{name}** {_said({k: v for k, v in sizes.items() if k not in shared})}".rstrip()
        for name, sizes in shapes.items()
    ]
    return "; ".join([f"All: {_said(shared)}", *own] if shared else own) + "."


def _said(sizes: Sizes) -> str:
    return ", ".join(f"{key} {value}" for key, value in sizes.items())


def meaning(found: Workload) -> str:
    """The docstring of its definition in one line."""
    return " ".join((inspect.getdoc(found.define) or "").split())


if __name__ == "__main__":
    collection = workloads()
    PAGE.write_text(page(collection), encoding="utf-8")
    print(f"{PAGE}: {len(collection)} workloads")
    for fault in faults(collection):
        print(fault)
