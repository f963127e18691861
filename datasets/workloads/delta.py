"""Delta rules: states that are corrected towards what they are told, token by token."""

from __future__ import annotations

import numpy as np

from autosched.datasets.workloads.define import Draw, Sizes, uniform, unit, workload
from autosched.datasets.workloads.recurrent import GLA_SHAPES, SMALL, TOKEN, TOKEN_SHAPES, qkv
from autosched.datasets.workloads.terms import (
    F32,
    Step,
    argmax,
    delta_step,
    inputs,
    number,
    query,
    recurrence,
    results,
    softmax,
    softplus,
    state,
    unit_length,
    weights,
)
from autosched.ir.node import Node, Program
from autosched.ir.ops import (
    eq,
    exp,
    fold,
    get,
    iota,
    reaxis,
    reduce_,
    sigmoid,
    sum_,
    take,
    where,
)

UNIT_KEYS: dict[str, Draw] = {"k": unit(), "beta": uniform(0.1, 0.95), "g": uniform(-0.6, -0.01)}
KDA_SHAPES = {
    "96 heads": {"b": 1, "h": 96, "t": 8192, "d": 128, "e": 128},
    "64 heads": {"b": 1, "h": 64, "t": 8192, "d": 128, "e": 128},
}
GDN_SHAPES = {"16k": GLA_SHAPES["16k"], "96 heads": KDA_SHAPES["96 heads"]}


@workload("D5", "C S L", SMALL, GDN_SHAPES, UNIT_KEYS)
def delta_net(*, b: int, h: int, t: int, d: int, e: int, dtype: str = "bfloat16") -> Program:
    """S += k beta (v - S k); o = q S, with keys of length one."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e}
    q, k, v = qkv(s, dtype)
    (beta,) = inputs(s, dtype, beta="b h t")
    o, last = recurrence("t", s, "b h d e", delta_step(k, v, beta), query(q, d**-0.5))
    return results(dtype, o=("b h t e", o), last=("b h d e", last))


@workload("D5 D6", "C S L", SMALL, GDN_SHAPES, UNIT_KEYS)
def gated_delta_net(*, b: int, h: int, t: int, d: int, e: int, dtype: str = "bfloat16") -> Program:
    """The delta rule after a decay exp(g) of the whole state."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e}
    q, k, v = qkv(s, dtype)
    (beta,), (g,) = inputs(s, dtype, beta="b h t"), inputs(s, F32, g="b h t")
    o, last = recurrence("t", s, "b h d e", delta_step(k, v, beta, g), query(q, d**-0.5))
    return results(dtype, o=("b h t e", o), last=("b h d e", last))


def kda_gate(s: dict[str, int], x: Node, bounded: bool) -> Node:
    """Log decays of channels from logits: -exp(A) softplus(x + b), or -5 sigmoid(exp(A)(x + b))."""
    a, bias = weights(s, F32, a="h", bias="h d")
    return -5.0 * sigmoid(exp(a) * (x + bias)) if bounded else -exp(a) * softplus(x + bias)


KDA_DRAWS: dict[str, Draw] = {"beta": uniform(0.1, 0.95), "a": uniform(-2.0, 0.5)}


@workload("D6", "C S L", {**SMALL, "bounded": False}, KDA_SHAPES, KDA_DRAWS)
def kda(
    *, b: int, h: int, t: int, d: int, e: int, bounded: bool = False, dtype: str = "bfloat16"
) -> Program:
    """The delta rule after a decay of each channel; q and k are brought to length one."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e}
    q, k, v = qkv(s, dtype)
    x, beta = inputs(s, dtype, x="b h t d", beta="b h t")
    step = delta_step(unit_length("d", k), v, beta, kda_gate(s, x, bounded))
    o, last = recurrence("t", s, "b h d e", step, query(unit_length("d", q), d**-0.5))
    return results(dtype, o=("b h t e", o), last=("b h d e", last))


def starts_at(offsets: Node, axis: str, tokens: int) -> Node:
    """Whether a token is the first of its document; `offsets` has every document's start."""
    return reduce_("any", axis, eq(iota("t", tokens), offsets))


def restarted(step: Step, first: Node) -> Step:
    """`step` from a state of zeros where `first` holds."""
    return lambda S: step(where(first, 0.0, S))


def document_starts(rng: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
    """Ascending starts of documents: the first is 0 and none is empty."""
    later = 1 + rng.choice(sizes["t"] - 1, shape[0] - 1, replace=False)
    return np.asarray([0, *sorted(later)])


PACKED = {"h": 3, "t": 17, "d": 5, "e": 7, "docs": 4, "dtype": F32}
PACKED_SHAPES = {
    f"{n} documents": {"h": 96, "t": 8192, "d": 128, "e": 128, "docs": n} for n in (6, 8)
}
PACKED_DRAWS: dict[str, Draw] = {**KDA_DRAWS, **UNIT_KEYS, "starts": document_starts}


@workload("D5 D6", "C S L I", PACKED, PACKED_SHAPES, PACKED_DRAWS)
def packed_gated_delta_net(
    *, h: int, t: int, d: int, e: int, docs: int, dtype: str = "bfloat16"
) -> Program:
    """Gated delta rule over packed documents: the state is zeros where one starts."""
    s = {"h": h, "t": t, "d": d, "e": e, "n": docs}
    q, k, v, beta = inputs(s, dtype, q="h t d", k="h t d", v="h t e", beta="h t")
    (g,), (starts,) = inputs(s, F32, g="h t"), inputs(s, "int32", starts="n")
    step = restarted(delta_step(k, v, beta, g), starts_at(starts, "n", t))
    o, _ = recurrence("t", s, "h d e", step, query(q, d**-0.5))
    return results(dtype, o=("h t e", o))


@workload("D6", "C S L I", {**PACKED, "bounded": True}, PACKED_SHAPES, PACKED_DRAWS)
def packed_kda(
    *, h: int, t: int, d: int, e: int, docs: int, bounded: bool = False, dtype: str = "bfloat16"
) -> Program:
    """KDA over packed documents."""
    s = {"h": h, "t": t, "d": d, "e": e, "n": docs}
    q, k, v, x = inputs(s, dtype, q="h t d", k="h t d", v="h t e", x="h t d")
    (beta,), (starts,) = inputs(s, dtype, beta="h t"), inputs(s, "int32", starts="n")
    step = delta_step(unit_length("d", k), v, beta, kda_gate(s, x, bounded))
    step = restarted(step, starts_at(starts, "n", t))
    o, _ = recurrence("t", s, "h d e", step, query(unit_length("d", q), d**-0.5))
    return results(dtype, o=("h t e", o))


@workload("D5 D6", "C S", TOKEN, TOKEN_SHAPES, UNIT_KEYS)
def gated_delta_decode(*, b: int, h: int, d: int, e: int, dtype: str = "bfloat16") -> Program:
    """One token of the gated delta rule: the next state and its row."""
    s = {"b": b, "h": h, "d": d, "e": e}
    q, k, v, beta = inputs(s, dtype, q="b h d", k="b h d", v="b h e", beta="b h")
    g, past = inputs(s, F32, g="b h", past="b h d e")
    new = delta_step(k, v, beta, g)(past)
    return results(dtype, o=("b h e", query(q, d**-0.5)(new)), last=("b h d e", new))


@workload("D6", "C S", TOKEN, TOKEN_SHAPES, KDA_DRAWS)
def kda_decode(
    *, b: int, h: int, d: int, e: int, bounded: bool = False, dtype: str = "bfloat16"
) -> Program:
    """One token of KDA: the next state and its row."""
    s = {"b": b, "h": h, "d": d, "e": e}
    q, k, v, x = inputs(s, dtype, q="b h d", k="b h d", v="b h e", x="b h d")
    (beta,), (past,) = inputs(s, dtype, beta="b h"), inputs(s, F32, past="b h d e")
    new = delta_step(unit_length("d", k), v, beta, kda_gate(s, x, bounded))(past)
    o = query(unit_length("d", q), d**-0.5)(new)
    return results(dtype, o=("b h e", o), last=("b h d e", new))


PRODUCT_SHAPES = {f"n{n}": {**GLA_SHAPES["1k"], "b": 4, "h": 16, "t": 2048, "d": 128, "e": 128,
                            "n": n} for n in (2, 3)}  # fmt: skip
PRODUCT_DRAWS: dict[str, Draw] = {**UNIT_KEYS, "beta": uniform(0.1, 1.9)}


@workload("D7", "C S L", {**SMALL, "n": 3}, PRODUCT_SHAPES, PRODUCT_DRAWS)
def delta_product(
    *, b: int, h: int, t: int, n: int, d: int, e: int, dtype: str = "bfloat16"
) -> Program:
    """One decay and then n delta steps for each token, read once: a fold inside a fold."""
    s = {"b": b, "h": h, "t": t, "n": n, "d": d, "e": e}
    (q,), (g,) = inputs(s, dtype, q="b h t d"), inputs(s, F32, g="b h t")
    k, v, beta = inputs(s, dtype, k="b h t n d", v="b h t n e", beta="b h t n")
    inner = delta_step(k, v, beta)(state("P", s, "b h d e"))

    def step(S: Node) -> Node:
        return get(fold("n", [(0, n)], {"P": (exp(g) * S, inner)}))

    o, _ = recurrence("t", s, "b h d e", step, query(q, d**-0.5))
    return results(dtype, o=("b h t e", o))


@workload("D7", "C S L", {**SMALL, "n": 2}, PRODUCT_SHAPES, PRODUCT_DRAWS)
def interleaved_delta_product(
    *, b: int, h: int, t: int, n: int, d: int, e: int, dtype: str = "bfloat16"
) -> Program:
    """The same as one recurrence of t n steps: no decay and no read within a token."""
    s = {"b": b, "h": h, "t": t, "p": t * n, "d": d, "e": e}
    (q,), (g,) = inputs(s, dtype, q="b h t d"), inputs(s, F32, g="b h t")
    k, v, beta = inputs(s, dtype, k="b h p d", v="b h p e", beta="b h p")
    at = iota("p", t * n)
    q, g = (reaxis(x, {"t": at // n}) for x in (q, g))
    step = delta_step(k, v, beta, where(eq(at % n, 0), g, 0.0))
    o, _ = recurrence("p", s, "b h d e", step, query(q, d**-0.5))
    return results(dtype, o=("b h t e", reaxis(o, {"p": iota("t", t) * n + (n - 1)})))


# ---- mixtures of memories --------------------------------------------------------------------

MOM = {**SMALL, "m": 4}
MOM_SHAPES = {"8k": {"b": 1, "h": 16, "t": 8192, "d": 128, "e": 128, "m": 4}}


def memories(s: dict[str, int], dtype: str) -> tuple[Node, ...]:
    """q, and for each memory k, v, beta and log decay g."""
    q, k, v = inputs(s, dtype, q="b h t d", k="b m h t d", v="b m h t e")
    return q, k, v, *inputs(s, dtype, beta="b m h t"), *inputs(s, F32, g="b m h t")


def two_best(axis: str, logits: Node) -> tuple[Node, Node]:
    """Whether a place is one of the two best along an axis, and its share of their softmax."""
    at, p = iota(axis, logits.extent(axis)), softmax(axis, logits)
    first = eq(at, argmax(axis, p))
    chosen = first | eq(at, argmax(axis, where(first, -1.0, p)))
    kept = where(chosen, p, 0.0)
    return chosen, kept / sum_(axis, kept)


@workload("D9", "C S L P", MOM, MOM_SHAPES, UNIT_KEYS)
def mixture_of_memories(
    *, b: int, h: int, t: int, d: int, e: int, m: int, dtype: str = "bfloat16"
) -> Program:
    """Each token updates and reads the two of m states that its router prefers."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e, "m": m}
    q, k, v, beta, g = memories(s, dtype)
    (router,) = inputs(s, dtype, router="b t m")
    chosen, share = two_best("m", router)
    update = delta_step(k, v, beta, g)
    o, _ = recurrence(
        "t", s, "b m h d e", lambda S: where(chosen, update(S), S),
        lambda S: sum_("m", share * query(q, d**-0.5)(S)),
    )  # fmt: skip
    return results(dtype, o=("b h t e", o))


def token_lists(rng: np.random.Generator, shape: tuple[int, ...], sizes: Sizes) -> np.ndarray:
    """For each batch and memory the ids of its tokens in order, then ids that nobody reads."""
    out = rng.permuted(np.broadcast_to(np.arange(shape[-1]), shape), axis=-1)
    for row in out.reshape(-1, shape[-1]):
        row[: shape[-1] // 2].sort()
    return np.asarray(out)


@workload(
    "D9", "C S L I P", MOM, MOM_SHAPES,
    {**UNIT_KEYS, "ids": token_lists, "share": uniform(0.0, 1.0),
     "counts": lambda rng, shape, sizes: rng.integers(0, sizes["t"] // 2 + 1, shape)},
)  # fmt: skip
def listed_memories(
    *, b: int, h: int, t: int, d: int, e: int, m: int, dtype: str = "bfloat16"
) -> Program:
    """The same from lists: memory m runs over its own counts[m] tokens, ragged."""
    s = {"b": b, "h": h, "t": t, "d": d, "e": e, "m": m, "n": t}
    ids, counts = inputs(s, "int32", ids="b m n", counts="b m")
    q, k, v, beta, g = (take(x, "t", ids) for x in memories(s, dtype))
    (share,) = inputs(s, F32, share="b m t")
    start, step = number(0.0), delta_step(k, v, beta, g)(state("S", s, "b m h d e"))
    loop = fold("n", [(0, counts)], {"S": (start, step)}, [query(q, d**-0.5)(step)])
    own = eq(ids, iota("t", t)) & (iota("n", t) < counts)
    rows = where(own, get(loop, 1), 0.0)
    return results(dtype, o=("b h t e", sum_(["m", "n"], share * rows)))
