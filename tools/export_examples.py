"""Two torch transformers in, the weightless example graphs of `autosched.examples` out.

Needs torch and onnxscript; a user of the examples needs neither, since the graphs it writes
are kept in the repository:

    python -m autosched.tools.export_examples [--only NAME] [--out FOLDER]

Each graph is written as NAME.onnx, the exported graph whose parameters hold no data, and
NAME.json, the mean and standard deviation that `autosched.examples` draws each of them with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from autosched.examples import GRAPHS

OPSET = 18  # the exporter's own; later ones would hide gelu and attention in one node each


@dataclass(frozen=True)
class Size:
    """The sizes of one transformer; `kv_heads` and `positions` only where the model has them."""

    layers: int
    width: int
    heads: int
    mlp: int
    vocabulary: int
    kv_heads: int = 0
    positions: int = 512

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


class EncoderLayer(nn.Module):
    """x[batch, sequence, width] to the same: attention, then the MLP, each followed by a norm."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.query = nn.Linear(size.width, size.width)
        self.key = nn.Linear(size.width, size.width)
        self.value = nn.Linear(size.width, size.width)
        self.attention_out = nn.Linear(size.width, size.width)
        self.attention_norm = nn.LayerNorm(size.width, eps=1e-12)
        self.mlp_in = nn.Linear(size.width, size.mlp)
        self.mlp_out = nn.Linear(size.mlp, size.width)
        self.mlp_norm = nn.LayerNorm(size.width, eps=1e-12)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (self.split(proj(x)) for proj in (self.query, self.key, self.value))
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        o = o.transpose(1, 2).reshape(x.shape)
        x = self.attention_norm(self.attention_out(o) + x)
        return self.mlp_norm(self.mlp_out(F.gelu(self.mlp_in(x))) + x)


class Encoder(nn.Module):
    """BERT: (input_ids, attention_mask)[batch, sequence] to hidden states, pooled row."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(size.vocabulary, size.width)
        self.position_embeddings = nn.Embedding(size.positions, size.width)
        self.token_type_embeddings = nn.Embedding(2, size.width)
        self.embedding_norm = nn.LayerNorm(size.width, eps=1e-12)
        self.layers = nn.ModuleList(EncoderLayer(size) for _ in range(size.layers))
        self.pooler = nn.Linear(size.width, size.width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        positions = torch.arange(input_ids.shape[1])[None, :]
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(
            torch.zeros_like(input_ids)
        )
        x = self.embedding_norm(x + self.position_embeddings(positions))
        # The additive mask that BERT has always had: 0 where attended, the lowest float elsewhere.
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        mask = mask.expand(-1, 1, input_ids.shape[1], -1)
        for layer in self.layers:
            x = layer(x, mask)
        return x, torch.tanh(self.pooler(x[:, 0]))


class RMSNorm(nn.Module):
    """x[..., width] over its root mean square, times a weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x[b, heads, s, d] turned by its position's angles: the rotary embedding, halves paired."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class DecoderLayer(nn.Module):
    """x[batch, sequence, width] to the same: norms first, grouped heads, SwiGLU, no biases."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = size.heads, size.kv_heads, size.head_dim
        kv_width = size.kv_heads * size.head_dim
        self.attention_norm = RMSNorm(size.width)
        self.query = nn.Linear(size.width, size.width, bias=False)
        self.key = nn.Linear(size.width, kv_width, bias=False)
        self.value = nn.Linear(size.width, kv_width, bias=False)
        self.attention_out = nn.Linear(size.width, size.width, bias=False)
        self.mlp_norm = RMSNorm(size.width)
        self.gate = nn.Linear(size.width, size.mlp, bias=False)
        self.up = nn.Linear(size.width, size.mlp, bias=False)
        self.down = nn.Linear(size.mlp, size.width, bias=False)

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def repeat(self, x: Tensor) -> Tensor:
        b, h, s, d = x.shape
        groups = self.heads // self.kv_heads
        return x[:, :, None].expand(b, h, groups, s, d).reshape(b, h * groups, s, d)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        y = self.attention_norm(x)
        q = rotate(self.split(self.query(y)), cos, sin)
        k = self.repeat(rotate(self.split(self.key(y)), cos, sin))
        v = self.repeat(self.split(self.value(y)))
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.attention_out(o.transpose(1, 2).reshape(x.shape))
        y = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """A Llama-like decoder: (input_ids, attention_mask)[batch, sequence] to the logits."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(size.vocabulary, size.width)
        self.layers = nn.ModuleList(DecoderLayer(size) for _ in range(size.layers))
        self.norm = RMSNorm(size.width)
        self.head = nn.Linear(size.width, size.vocabulary, bias=False)
        exponents = torch.arange(0, size.head_dim, 2).float() / size.head_dim
        self.register_buffer("inverse_frequency", 10000.0**-exponents)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embeddings(input_ids)
        positions = torch.arange(input_ids.shape[1])
        angles = positions[:, None].float() * self.get_buffer("inverse_frequency")[None, :]
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos(), angles.sin()
        causal = positions[None, :] <= positions[:, None]
        mask = causal[None, None] & attention_mask[:, None, None, :].bool()
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.head(self.norm(x))


@dataclass(frozen=True)
class Export:
    """What makes one graph: a model, its size, and the names of its outputs."""

    model: type[nn.Module]
    size: Size
    outputs: tuple[str, ...]


ENCODER_OUTPUTS = ("last_hidden_state", "pooled")
EXPORTS: dict[str, Export] = {
    "encoder": Export(Encoder, Size(6, 384, 12, 1536, 30522), ENCODER_OUTPUTS),
    "decoder": Export(Decoder, Size(4, 512, 8, 1408, 32000, kv_heads=2), ("logits",)),
    "tiny_encoder": Export(Encoder, Size(2, 64, 4, 256, 1000, positions=128), ENCODER_OUTPUTS),
    "tiny_decoder": Export(Decoder, Size(2, 64, 4, 176, 1000, kv_heads=2), ("logits",)),
}


# Gains over 1/sqrt(fan in). Sharp scores and a light attention branch keep tokens apart: with
# plain gains, each layer averages them, and after six all rows of the encoder are alike.
GAINS = {"query": 1.75, "key": 1.75, "attention_out": 0.5}


def moments(name: str, parameter: Tensor) -> tuple[float, float]:
    """Mean and standard deviation that keep activations near one, and every parameter felt."""
    owner, kind = name.split(".")[-2:]
    if kind == "bias":
        return 0.0, 0.1
    if owner.endswith("norm"):
        return 1.0, 0.1
    if owner.endswith("embeddings"):
        return 0.0, 0.25 if owner.startswith("token_type") else 1.0
    return 0.0, round(GAINS.get(owner, 1.0) * parameter.shape[1] ** -0.5, 6)


def initialise(model: nn.Module, draws: Mapping[str, tuple[float, float]]) -> None:
    """Fill each parameter at random, so that the exporter merges no two and each can be found."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, *draws[name])


def name_weights(model: nn.Module, graph: onnx.GraphProto) -> dict[str, str]:
    """Initializer name -> parameter name, found by value; the exporter renames what it transposes.

    A transposed parameter becomes NAME_t in the graph, in place of a number of the exporter's.
    """
    origin: dict[bytes, tuple[str, str]] = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        if value.ndim == 2:
            origin[value.T.contiguous().numpy().tobytes()] = (f"{name}_t", name)
        origin[value.numpy().tobytes()] = (name, name)
    renamed: dict[str, str] = {}
    found: dict[str, str] = {}
    for tensor in graph.initializer:
        key = numpy_helper.to_array(tensor).tobytes()
        if key in origin:
            renamed[tensor.name], parameter_name = origin[key]
            tensor.name = renamed[tensor.name]
            found[tensor.name] = parameter_name
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    missing = {name for name, _ in model.named_parameters()} - set(found.values())
    if missing:
        raise RuntimeError(f"parameters not found in the exported graph: {sorted(missing)}")
    return found


def strip(model: onnx.ModelProto, weights: Mapping[str, str]) -> None:
    """Drop the data of the weights, and all that would differ from one export to the next."""
    del model.metadata_props[:], model.graph.metadata_props[:]
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            tensor.ClearField("raw_data")
    for item in (*model.graph.node, *model.graph.initializer, *model.graph.value_info):
        del item.metadata_props[:]
        item.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    for node in model.graph.node:
        attributes = sorted(node.attribute, key=lambda attribute: attribute.name)
        del node.attribute[:]
        node.attribute.extend(attributes)


def export(name: str, out: Path) -> None:
    """Write NAME.onnx and NAME.json into the folder `out`."""
    spec = EXPORTS[name]
    model = spec.model(spec.size).eval()
    draws = {n: moments(n, parameter) for n, parameter in model.named_parameters()}
    initialise(model, draws)
    ids = torch.zeros(2, 17, dtype=torch.int64)
    free = {0: "batch", 1: "sequence"}
    program = torch.onnx.export(
        model,
        (ids, torch.ones_like(ids)),
        input_names=["input_ids", "attention_mask"],
        output_names=list(spec.outputs),
        dynamic_shapes=(free, free),
        opset_version=OPSET,
        dynamo=True,
    )
    assert program is not None
    proto = program.model_proto
    weights = name_weights(model, proto.graph)
    strip(proto, weights)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.onnx").write_bytes(proto.SerializeToString(deterministic=True))
    recipe = {initializer: draws[parameter] for initializer, parameter in weights.items()}
    lines = ",\n".join(f"  {json.dumps(n)}: {json.dumps(recipe[n])}" for n in sorted(recipe))
    (out / f"{name}.json").write_text("{\n" + lines + "\n}\n")


def main() -> None:
    """Export every example, or one."""
    parser = argparse.ArgumentParser(description="Repeat the export of the example graphs.")
    parser.add_argument("--only", choices=sorted(EXPORTS), help="one example (default: all)")
    parser.add_argument("--out", type=Path, default=GRAPHS, help="folder (default: the package's)")
    arguments = parser.parse_args()
    for name in [arguments.only] if arguments.only else EXPORTS:
        export(name, arguments.out)


if __name__ == "__main__":
    main()
