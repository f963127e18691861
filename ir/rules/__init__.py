"""Rewrite rules: one file a rule, each with `apply(program, action) -> Program | Illegal`."""

from __future__ import annotations

from collections.abc import Callable

from autosched.ir.node import Program
from autosched.ir.rules import (
    arrive,
    bind,
    cascade,
    exp2,
    inline,
    join,
    match_dot,
    place,
    rfactor,
    share,
    skip,
    split,
    split_reduce,
    stagger,
    stream,
    tile,
    trim,
)
from autosched.ir.rules.action import Action, Illegal

RULES: dict[str, Callable[[Program, Action], Program | Illegal]] = {
    "cascade": cascade.apply,
    "inline": inline.apply,
    "join": join.apply,
    "split": split.apply,
    "bind": bind.apply,
    "rfactor": rfactor.apply,
    "place": place.apply,
    "trim": trim.apply,
    "match_dot": match_dot.apply,
    "tile": tile.apply,
    "exp2": exp2.apply,
    "skip": skip.apply,
    "stagger": stagger.apply,
    "split_reduce": split_reduce.apply,
    "arrive": arrive.apply,
    "stream": stream.apply,
    "share": share.apply,
}
