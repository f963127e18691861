"""What a feature and a catalogue of features are: plain data that models and tables refer to.

A version names both the columns and what they mean: change it with either, and old weights are
refused instead of misread.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Feature:
    name: str
    unit: str
    group: str  # "program" | "target" | "schedule"
    doc: str


@dataclass(frozen=True)
class Catalogue:
    """The columns of one kind of target. Each column of `shares` is a part of the time that the
    column `bound` adds up: trees see them as shares of it; `title` names the programs."""

    version: str
    title: str
    note: str
    features: tuple[Feature, ...]
    bound: str
    shares: tuple[str, ...]


def of_group(group: str, *rows: tuple[str, str, str]) -> tuple[Feature, ...]:
    """Features of one group from (name, unit, meaning)."""
    return tuple(Feature(name, unit, group, doc) for name, unit, doc in rows)
