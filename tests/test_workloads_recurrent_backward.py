"""Gradients of recurrences beside automatic differentiation of their sums over pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from workload_check import Array, check

from autosched.datasets.workloads import recurrent_backward  # noqa: F401

torch = pytest.importorskip("torch")

Arrays = dict[str, Array]


def gradients(forward: Callable[..., Any], x: Arrays, names: tuple[str, ...]) -> Arrays:
    """The gradients of sum(do * forward(tensors)) by name, as arrays."""
    tensors = {n: torch.tensor(a, requires_grad=n in names) for n, a in x.items()}
    loss = (forward(tensors) * tensors["do"]).sum()
    found = torch.autograd.grad(loss, [tensors[n] for n in names])
    return {f"d{n}": g.numpy() for n, g in zip(names, found)}


def decayed(x: Any, g: Any) -> Any:
    """o_i = sum over j <= i of exp(g_j+1 + ... + g_i) (q_i k_j) v_j."""
    total = torch.cumsum(g, -2)
    span = total[..., :, None, :] - total[..., None, :, :]
    pairs = torch.einsum("...id,...jd,...ijd->...ij", x["q"], x["k"], torch.exp(span))
    return torch.tril(pairs) @ x["v"]


def test_retention_backward() -> None:
    def forward(x: Any) -> Any:
        return decayed(x, -x["slope"][:, None, None].expand(-1, x["q"].shape[2], 1))

    check("retention_backward", lambda x, s: gradients(forward, x, ("q", "k", "v")))


def test_gla_backward() -> None:
    def reference(x: Arrays, s: Any) -> Arrays:
        return gradients(lambda y: decayed(y, y["g"]) / s.d**0.5, x, ("q", "k", "v", "g"))

    check("gla_backward", reference)


@pytest.mark.parametrize("wide", [False, True])
def test_gated_delta_backward(wide: bool) -> None:
    """The forward pass as products of matrices (I - beta k k') diag(exp g)."""

    def forward(x: Any, s: Any) -> Any:
        state, rows, g = torch.zeros(s.b, s.h, s.d, s.e, dtype=torch.float64), [], x["g"]
        g = g if wide else g[..., None].expand(-1, -1, -1, s.d)
        for t in range(s.t):
            k, v, beta = x["k"][:, :, t, :, None], x["v"][:, :, t, None], x["beta"][:, :, t]
            turn = torch.eye(s.d) - beta[..., None, None] * k @ k.mT
            state = turn @ (torch.exp(g[:, :, t, :, None]) * state) + beta[..., None, None] * k @ v
            rows.append(x["q"][:, :, t, None] @ state / s.d**0.5)
        return torch.cat(rows, -2)

    def reference(x: Arrays, s: Any) -> Arrays:
        return gradients(lambda y: forward(y, s), x, ("q", "k", "v", "beta", "g"))

    check("gated_delta_backward", reference, wide=wide)
