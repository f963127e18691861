"""The collection of workloads: published systems as definitions of some ten lines each."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from autosched.datasets.workloads.define import Workload, collected

__all__ = ["Workload", "workloads"]


def workloads() -> Mapping[str, Workload]:
    """All workloads by name; imports every module of this folder."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return collected()
