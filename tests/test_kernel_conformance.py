"""ONNX's node tests through compiled kernels: a part of them, of every family and every type.

`python -m autosched.tools.conformance` runs all of them. Nothing but compiled kernels takes part
in an answer: no interpreter, no onnxruntime.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autosched.codegen.runtime.arrays import STORAGE
from autosched.tools.conformance import conformance, write_cases
from autosched.tools.conformance_jobs import Verdict, too_far
from autosched.tools.onnx_cases import Case, cases, read_case, refused

EACH_TYPE = 8  # cases of each type, and with empty tensors, and with scalars
NOT_OURS = {"draws random numbers"}


def facts(case: Case) -> set[str]:
    """The types of a case, and whether it has scalars or empty tensors."""
    arrays = (*case.feed.values(), *case.expected)
    found = {a.dtype.name for a in arrays}
    found |= {"empty" for a in arrays if np.size(a) == 0}
    return found | {"scalar" for a in arrays if np.ndim(a) == 0}


def sample(found: Sequence[Case]) -> list[Case]:
    """The first case of each family, and more until every type has enough."""
    chosen: dict[str, Case] = {}
    families: set[str] = set()
    seen: Counter[str] = Counter()
    ordered = sorted(found, key=lambda c: c.name)
    for wanted in (lambda c: c.family not in families,
                   lambda c: any(seen[f] < EACH_TYPE for f in facts(c))):  # fmt: skip
        for case in ordered:
            if case.name not in chosen and wanted(case):
                chosen[case.name] = case
                families.add(case.family)
                seen.update(facts(case))
    return list(chosen.values())


@pytest.fixture(scope="module")
def chosen() -> list[Case]:
    return sample(list(cases()))


@pytest.fixture(scope="module")
def verdicts(chosen: list[Case], tmp_path_factory: pytest.TempPathFactory) -> list[Verdict]:
    folders = write_cases(chosen, tmp_path_factory.mktemp("cases"))
    return list(conformance(folders, more=1, seed=3))


def test_every_family_and_type_is_there(chosen: list[Case]) -> None:
    assert len({c.family for c in chosen}) >= 195
    of_type = Counter(f for c in chosen for f in facts(c))
    assert all(of_type[t] >= EACH_TYPE for t in (*STORAGE, "empty", "scalar")), of_type


def test_kernels_say_what_onnx_says(verdicts: list[Verdict]) -> None:
    wrong = [f"{v.name}: {v.problem}" for v in verdicts if v.problem]
    assert not wrong, "\n".join(wrong)
    outside = {v.outside for v in verdicts if v.outside}
    assert outside <= NOT_OURS, outside
    assert sum(v.kernels for v in verdicts) > len(verdicts)


def doctored(folder: Path) -> Iterator[str]:
    """The case in `folder` with each of its expected values moved a little."""
    case = read_case(folder)
    for n, array in enumerate(case.expected):
        other = np.array(array)
        other.reshape(-1)[-1] += 1
        expected = (*case.expected[:n], other, *case.expected[n + 1 :])
        changed = Case(f"{case.name}_{n}", case.model, case.feed, expected)
        (path,) = write_cases([changed], folder.parent)
        yield str(path)


def test_a_wrong_answer_is_seen(chosen: list[Case], tmp_path: Path) -> None:
    """With another expected value in one place, a case is no longer right."""
    names = {c.name: c for c in chosen}
    some = [names[n] for n in sorted(names) if names[n].expected[0].size > 2][::40]
    some = [c for c in some if c.expected[0].dtype.name not in ("bool", "bfloat16")]
    paths = [p for f in write_cases(some, tmp_path) for p in doctored(f)]
    found = list(conformance([Path(p) for p in paths]))
    assert found and all(v.problem or v.outside for v in found)


def test_each_element_is_looked_at(chosen: list[Case]) -> None:
    """A small element that is off vanishes in any norm beside a great one."""
    want = np.array([1e4, 1e-3], np.float32)
    case = replace(chosen[0], expected=(want,))
    wide = want.astype(np.float64)
    assert too_far(case, 0, wide, wide) is None
    assert "1 of 2" in (too_far(case, 0, wide * [1, 1.01], wide) or "")
    assert "1 of 2" in (too_far(case, 0, wide * [1, np.nan], wide) or "")


def test_what_is_not_ours_has_a_reason() -> None:
    reasons = {why for _, why in refused()}
    assert all(why.startswith("of type ") for why in reasons)
    assert not any(t in why for why in reasons for t in ("float16", "int8", "int64", "bool"))
