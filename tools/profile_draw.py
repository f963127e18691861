"""A seed in, the workloads of the suite "profile" out, as the text of its TOML file.

    python -m autosched.tools.profile_draw > datasets/suites/profile.toml

Dimensions of real models times how many tokens there are, and log-uniform ones with a share of
awkward sizes, neither powers of two nor multiples of eight. What would take too long to compute
in float64 on a GPU, or too much of its memory, is drawn again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

SEED = 20261122
MAX_FLOPS = 4e11
MAX_BYTES = 1.5e9  # of inputs, and of the outputs with a float64 reference
AWKWARD = 0.3  # share of the log-uniform sizes that are any whole number

_Sizes = dict[str, Any]
_Draw = Callable[[np.random.Generator], _Sizes]

# (name, hidden, intermediate, heads, groups of keys, width of a head)
MODELS: tuple[tuple[str, int, int, int, int, int], ...] = (
    ("Llama-3 8B", 4096, 14336, 32, 8, 128), ("Llama-3 70B", 8192, 28672, 64, 8, 128),
    ("Llama-3.2 1B", 2048, 8192, 32, 8, 64), ("Qwen2.5-0.5B", 896, 4864, 14, 2, 64),
    ("Qwen2.5-7B", 3584, 18944, 28, 4, 128), ("Qwen2.5-32B", 5120, 27648, 40, 8, 128),
    ("Gemma-2 2B", 2304, 9216, 8, 4, 256), ("Gemma-2 9B", 3584, 14336, 16, 8, 256),
    ("Mixtral 8x7B", 4096, 14336, 32, 8, 128), ("Phi-3 mini", 3072, 8192, 32, 32, 96),
    ("GPT-2", 768, 3072, 12, 12, 64), ("GPT-2 XL", 1600, 6400, 25, 25, 64),
    ("BERT-base", 768, 3072, 12, 12, 64), ("BERT-large", 1024, 4096, 16, 16, 64),
    ("ViT-L/16", 1024, 4096, 16, 16, 64), ("ViT-H/14", 1280, 5120, 16, 16, 80),
    ("Whisper large", 1280, 5120, 20, 20, 64), ("T5 3B", 1024, 16384, 32, 32, 128),
)  # fmt: skip
TOKENS = (128, 197, 256, 384, 512, 577, 1024, 1500, 1576, 2048, 3072, 4096, 8192)
FEW = (1, 2, 4, 8, 16, 24, 32, 48, 64)
DTYPES = ("bfloat16",) * 6 + ("float16",) * 2 + ("float32",)
ROWS = ("rmsnorm", "layernorm", "softmax", "unit_rows", "logsumexp")
EPILOGUES = ("relu", "relu squared", "silu", "gelu", "gelu tanh", "none")


def _pick(rng: np.random.Generator, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def _size(rng: np.random.Generator, low: int, high: int) -> int:
    """Log-uniform; a multiple of 64 or 8, a power of two, or any number."""
    value = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    if rng.random() < AWKWARD:
        return max(1, round(value))
    unit = _pick(rng, (8, 16, 64, 128))
    return max(unit, round(value / unit) * unit) if value > unit / 2 else max(1, round(value))


def _layer(rng: np.random.Generator, tokens: Any) -> _Sizes:
    """A linear layer of a model, or one of nobody's; `of` says which."""
    if rng.random() < 0.5:
        return {"of": "log-uniform", "m": int(_pick(rng, tokens)) if tokens is FEW
                else _size(rng, 64, 8192), "n": _size(rng, 64, 16384),
                "k": _size(rng, 64, 16384)}  # fmt: skip
    name, c, f, h, g, d = _pick(rng, MODELS)
    part, n, k = _pick(rng, (("qkv", (h + 2 * g) * d, c), ("o", c, h * d), ("up", f, c),
                             ("gate and up", 2 * f, c), ("down", c, f)))  # fmt: skip
    return {"of": f"{name}, {part}", "m": _pick(rng, tokens), "n": n, "k": k}


def _heads(rng: np.random.Generator, grouped: bool) -> _Sizes:
    if rng.random() < 0.6:
        fitting = [m for m in MODELS if (m[3] != m[4]) == grouped]
        name, _, _, h, g, d = _pick(rng, fitting)
        return {"of": name, "h": h, "g": g, "d": d}
    g, times = _pick(rng, (1, 2, 3, 4, 8, 16)), _pick(rng, (2, 4, 5, 8)) if grouped else 1
    return {"of": "log-uniform", "h": g * times, "g": g, "d": _pick(rng, (32, 64, 80, 96, 128))}


def _attention(rng: np.random.Generator, grouped: bool = False, **more: Any) -> _Sizes:
    t = _pick(rng, TOKENS) if rng.random() < 0.5 else _size(rng, 64, 8192)
    return {**_heads(rng, grouped), "b": _pick(rng, (1, 1, 2, 4, 8, 16)), "i": t, "j": t, **more}


def _cross(rng: np.random.Generator) -> _Sizes:
    made = _attention(rng)
    return {**made, "j": _pick(rng, (77, 197, 256, 512, 1500, _size(rng, 64, 4096)))}


def _decode(rng: np.random.Generator) -> _Sizes:
    return {**_heads(rng, rng.random() < 0.8), "b": _pick(rng, (1, 2, 4, 8, 16, 32, 64)), "i": 1,
            "j": _pick(rng, (1024, 2048, 4096, 8192, 16384, 32768, _size(rng, 512, 40000))),
            }  # fmt: skip


def _masked(rng: np.random.Generator) -> _Sizes:
    made = _attention(rng, bool(rng.integers(2)))
    t = made["i"]
    mask, numbers = _pick(rng, (
        ("sliding_window_causal", {"window": int(_pick(rng, (128, 256, 1024, max(1, t // 3))))}),
        ("sliding_window", {"window": int(_pick(rng, (64, 128, 512)))}),
        ("prefix_lm_causal", {"prefix": int(max(1, t // _pick(rng, (2, 4, 8))))}),
        ("segment_causal", {"block": int(_pick(rng, (64, 128, 256, 512)))}),
        ("sink_local", {"sinks": int(_pick(rng, (4, 64))), "window": 256}),
    ))  # fmt: skip
    return {**made, "mask": mask, **numbers}


def _rows(rng: np.random.Generator) -> _Sizes:
    if rng.random() < 0.5:
        name, c, f, *_ = _pick(rng, MODELS)
        return {"of": name, "m": _pick(rng, (*TOKENS, *FEW, 16384)), "k": _pick(rng, (c, f))}
    return {"of": "log-uniform", "m": _size(rng, 1, 32768), "k": _size(rng, 32, 32768)}


def _typed(draw: _Draw) -> _Draw:
    return lambda rng: {**draw(rng), "dtype": _pick(rng, DTYPES)}


# group: title, definition, how many, how each is drawn
GROUPS: Mapping[str, tuple[str, str, int, _Draw]] = {
    "plain": ("GEMM, weights k x n", "gemm", 52,
              _typed(lambda r: {**_layer(r, TOKENS), "layout": "kn"})),
    "linear": ("GEMM, weights n x k", "gemm", 40,
               _typed(lambda r: {**_layer(r, TOKENS), "layout": "nk"})),
    "skinny": ("GEMM, at most 64 rows", "gemm", 48,
               lambda r: {**_layer(r, FEW), "layout": _pick(r, ("nk", "nk", "kn"))}),
    "transposed": ("GEMM, operands transposed as in a backward pass", "transposed_gemm", 28,
                   lambda r: {**_layer(r, TOKENS), "stored": _pick(r, ("tn", "tn", "tt"))}),
    "batched": ("Batches of GEMM", "batched_gemm", 32, lambda r: {
        "of": "log-uniform", "b": _pick(r, (2, 4, 8, 12, 16, 32, 64, 96)), "m": _size(r, 16, 2048),
        "n": _size(r, 16, 2048), "k": _size(r, 16, 2048), "stored": _pick(r, ("nn", "nt"))}),
    "fp8": ("GEMM of fp8 with scales", "scaled_gemm", 36, lambda r: {
        **_layer(r, _pick(r, (TOKENS, FEW))), "scales": _pick(r, ("tensor", "row"))}),
    "fused": ("GEMM with an epilogue", "fused_gemm", 40, lambda r: {
        **_layer(r, _pick(r, (TOKENS, TOKENS, FEW))), "layout": _pick(r, ("nk", "kn")),
        "epilogue": _pick(r, EPILOGUES), "bias": bool(r.integers(2)),
        "residual": bool(r.integers(2))}),
    "gated": ("Two products that share x, gated", "gated_pair", 20, lambda r: {
        **_layer(r, _pick(r, (TOKENS, FEW))), "layout": _pick(r, ("nk", "kn"))}),
    "full": ("Attention, full", "attention", 28, _typed(_attention)),
    "causal": ("Attention, causal", "attention", 36,
               lambda r: _attention(r, mask="causal")),
    "grouped": ("Attention, grouped heads", "attention", 28,
                lambda r: _attention(r, True, mask=_pick(r, ("causal", "causal", "full")))),
    "cross": ("Attention over other keys", "attention", 20, _cross),
    "decode": ("Attention of one query", "attention", 32, _decode),
    "masked": ("Attention, static masks", "attention", 32, _masked),
    "norm": ("Norms of rows", "rmsnorm", 36, _typed(lambda r: {
        **_rows(r), "define": _pick(r, ROWS)})),
    "reduction": ("Reductions of rows and columns", "reduction", 28, _typed(lambda r: {
        **_rows(r), "along": _pick(r, ("rows", "columns")),
        "reduce": _pick(r, ("sum", "mean square", "largest"))})),
}  # fmt: skip


def affordable(sizes: Mapping[str, Any]) -> bool:
    """Whether a reference and some hundred candidates take a reasonable time and memory."""
    s = {k: v for k, v in sizes.items() if type(v) is int}
    b, m, n, k = s.get("b", 1), s.get("m", 1), s.get("n", 1), s.get("k", 1)
    if "h" in s:
        flops = 4.0 * b * s["h"] * s["i"] * s["j"] * s["d"]
        moved = b * s["d"] * (s["h"] * s["i"] * 12.0 + 4.0 * s["g"] * s["j"])
        return flops <= MAX_FLOPS and moved <= MAX_BYTES
    flops = 2.0 * b * m * n * k if "n" in s else 10.0 * m * k
    moved = b * (4.0 * (m * k + k * n) + 12.0 * m * n) if "n" in s else 16.0 * m * k
    return flops <= MAX_FLOPS and moved <= MAX_BYTES


def drawn(seed: int = SEED) -> dict[str, list[_Sizes]]:
    """Rows of each group: all different, all affordable."""
    out: dict[str, list[_Sizes]] = {}
    for place, (group, (_, _, count, draw)) in enumerate(GROUPS.items()):
        rng = np.random.default_rng([seed, place])
        rows: dict[str, _Sizes] = {}
        while len(rows) < count:
            made = draw(rng)
            told = json.dumps({k: v for k, v in made.items() if k != "of"}, sort_keys=True)
            if affordable(made):
                rows.setdefault(told, made)
        out[group] = list(rows.values())
    return out


def lines(seed: int = SEED) -> Iterator[str]:
    """The TOML file."""
    yield "# Workloads that cost models learn from: what real models compute, and log-uniform"
    yield f"# sizes. Drawn by tools/profile_draw.py with seed {seed}; dense.toml says how to read"
    yield "# it."
    yield ""
    yield "schema = 1"
    yield 'title = "Logs for cost models: GEMM, attention, norms and reductions"'
    for group, rows in drawn(seed).items():
        title, define, _, _ = GROUPS[group]
        yield from ("", f"[groups.{group}]", f'title = "{title}"', f'define = "{define}"')
        yield "rows = ["
        for row in rows:
            told = ", ".join(f"{k} = {json.dumps(v)}" for k, v in row.items())
            yield f"  {{ {told} }},"
        yield "]"


if __name__ == "__main__":
    sys.stdout.write("\n".join(lines()) + "\n")
