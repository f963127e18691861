"""A space of schedules and what is measured of it in, the candidates to measure next out.

Three kinds: `spread`, evenly over the knobs of every sketch; `head`, the first of a model's
ranking; `near`, moves from the best so far. All pure: equal arguments give equal candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import qmc

from autosched.ir.extent import evaluate_extent
from autosched.ir.schedule import Sketch
from autosched.search.space import Candidate, Space

POINTS = 4096  # of a sketch's sequence that are looked at for legal rows
MAX_ALIKE = 0.25  # share of the head that one sketch may take, where there are several
LEADERS = 4  # the best so far, from which moves start
STEPS = (-2, -1, 1, 2)  # along a knob's domain; moves of two knobs go by single steps


@dataclass(frozen=True)
class Shares:
    """Of each round's candidates; `near` counts once something was measured."""

    spread: float = 0.4
    head: float = 0.2
    near: float = 0.4

    def __post_init__(self) -> None:
        values = (self.spread, self.head, self.near)
        if min(values) < 0 or not sum(values) > 0:
            raise ValueError("the shares of a design are not negative, and one of them is positive")

    def counts(self, total: int, measured: bool) -> tuple[int, int, int]:
        """Candidates of each kind in a round of `total`."""
        near = self.near if measured else 0.0
        whole = (self.spread + self.head + near) or 1.0
        heads, nears = round(total * self.head / whole), round(total * near / whole)
        return max(0, total - heads - nears), heads, nears


# ---- evenly over the knobs ---------------------------------------------------------------------


def spread(space: Space, seed: int) -> Iterator[Candidate]:
    """Candidates of all sketches in turn, each sketch's by a low-discrepancy sequence.

    A sketch begins with the fewest rows of its sequence that show every value of every knob.
    """
    lanes = [_points(space, n, seed) for n in range(len(space.sketches))]
    while lanes:
        alive = []
        for lane in lanes:
            if (made := next(lane, None)) is not None:
                yield made
                alive.append(lane)
        lanes = alive


def _points(space: Space, number: int, seed: int) -> Iterator[Candidate]:
    sketch = space.sketches[number]
    if not sketch.knobs:
        yield Candidate(number, ())
        return
    points = qmc.Halton(d=len(sketch.knobs), seed=seed).random(POINTS)
    domains = [np.asarray(k.domain, np.int64) for k in sketch.knobs]
    drawn = np.column_stack(
        [d[(points[:, n] * len(d)).astype(np.int64)] for n, d in enumerate(domains)]
    )
    table = space.rows(number)
    order = np.random.default_rng(seed).permutation(len(table))
    # Behind the sequence stands the table: where few points are legal, it goes on with its rows.
    rows = np.concatenate([drawn[legal(sketch, drawn)], table[order[:POINTS]]])
    distinct = list(dict.fromkeys(map(tuple, rows.tolist())))
    for values in _covering(distinct):
        yield Candidate(number, values)


def _covering(rows: Sequence[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    """First the rows that show a value that none before shows, then the rest, in their order."""
    seen: set[tuple[int, int]] = set()
    rest = []
    for row in rows:
        shown = set(enumerate(row))
        if shown <= seen:
            rest.append(row)
        else:
            seen |= shown
            yield row
    yield from rest


# ---- the first of a ranking --------------------------------------------------------------------


def head(times: Sequence[np.ndarray], space: Space, count: int) -> list[tuple[Candidate, float]]:
    """The fastest by times[sketch][row of its table], and their times, no sketch more than its
    share."""
    ranked = sorted(
        (float(us[row]), n, int(row))
        for n, us in enumerate(times)
        for row in np.argsort(us, kind="stable")[:count]
    )
    most = max(1, round(count * max(MAX_ALIKE, 1 / max(len(times), 1))))
    taken = [0] * len(times)
    out: list[tuple[Candidate, float]] = []
    for us, n, row in ranked:
        if len(out) < count and taken[n] < most:
            taken[n] += 1
            out.append((Candidate(n, tuple(space.rows(n)[row].tolist())), us))
    return out


# ---- around the best so far --------------------------------------------------------------------


def near(
    space: Space, measured: Sequence[tuple[Candidate, float]], known: frozenset[Candidate],
    count: int, seed: int,
) -> list[Candidate]:  # fmt: skip
    """At most `count` legal candidates that are not `known`, by moves from the fastest measured.

    One-knob moves of the leaders and their twins in other sketches come in turn, those of the
    best first; then moves of two knobs, drawn by `seed`.
    """
    leaders = [c for c, _ in sorted(measured, key=lambda p: (p[1], p[0]))[:LEADERS]]
    rng = np.random.default_rng(seed)
    lanes = [[*twins(space, c), *moves(space, c, 1)] for c in leaders]
    lanes += [[pairs[n] for n in rng.permutation(len(pairs))]
              for pairs in (moves(space, c, 2) for c in leaders)]  # fmt: skip
    ones = itertools.chain.from_iterable(itertools.zip_longest(*lanes[: len(leaders)]))
    twos = itertools.chain.from_iterable(itertools.zip_longest(*lanes[len(leaders) :]))
    found = dict.fromkeys(c for c in (*ones, *twos) if c is not None and c not in known)
    return list(found)[:count]


def moves(space: Space, candidate: Candidate, knobs: int) -> list[Candidate]:
    """Legal candidates that differ from this one in exactly `knobs` knobs, by short steps."""
    sketch = space.sketches[candidate.sketch]
    steps = STEPS if knobs == 1 else tuple(s for s in STEPS if abs(s) == 1)
    at = [int(np.searchsorted(k.domain, v)) for k, v in zip(sketch.knobs, candidate.knobs)]
    rows = []
    for chosen in itertools.combinations(range(len(sketch.knobs)), knobs):
        for by in itertools.product(steps, repeat=knobs):
            places = dict(zip(chosen, by))
            if all(0 <= at[n] + s < len(sketch.knobs[n].domain) for n, s in places.items()):
                row = list(candidate.knobs)
                for n, s in places.items():
                    row[n] = sketch.knobs[n].domain[at[n] + s]
                rows.append(row)
    found = np.array(rows, np.int64).reshape(len(rows), len(sketch.knobs))
    return [Candidate(candidate.sketch, tuple(r)) for r in found[legal(sketch, found)].tolist()]


def twins(space: Space, candidate: Candidate) -> list[Candidate]:
    """The same knob values in the other sketches that have the same knobs and allow them."""
    mine = space.sketches[candidate.sketch]
    values = dict(zip((k.name for k in mine.knobs), candidate.knobs))
    out = []
    for n, other in enumerate(space.sketches):
        if n != candidate.sketch and {k.name for k in other.knobs} == set(values):
            row = tuple(values[k.name] for k in other.knobs)
            inside = all(v in k.domain for k, v in zip(other.knobs, row))
            if inside and legal(other, np.array([row], np.int64).reshape(1, len(row)))[0]:
                out.append(Candidate(n, row))
    return out


def legal(sketch: Sketch, rows: np.ndarray) -> np.ndarray:
    """Which rows of knob values, int64[row, knob], hold all constraints of the sketch."""
    keep = np.ones(len(rows), bool)
    columns = {k.name: rows[:, n] for n, k in enumerate(sketch.knobs)}
    for constraint in sketch.constraints:
        held = evaluate_extent(constraint, columns)
        keep &= np.broadcast_to(np.asarray(held, bool), keep.shape)
    return keep
