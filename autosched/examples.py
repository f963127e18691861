"""Name and seed in, a complete ONNX model of an example transformer out.

The graphs are exports of torch models (`tools/export_examples.py` repeats them), kept without
their weights: a seed fills those in here, so that nothing is downloaded and torch is not needed.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

GRAPHS = Path(__file__).resolve().parent / "graphs"
SINGLE_FILE_BYTES = int(1.9 * 2**30)  # protobuf refuses a message of 2 GiB
INPUT_STREAM = "inputs"


@dataclass(frozen=True)
class Example:
    """One example model: what it is, and the facts that its inputs depend on."""

    description: str
    vocabulary: int
    max_sequence: int | None = None  # None: any length


EXAMPLES: dict[str, Example] = {
    "encoder": Example(
        "BERT encoder: 6 layers of width 384, 12 heads, MLP 1536, vocabulary 30522", 30522, 512
    ),
    "decoder": Example(
        "Llama-like decoder: 4 layers of width 512, 8 query and 2 key-value heads, rotary, "
        "RMSNorm, SwiGLU 1408, vocabulary 32000",
        32000,
    ),
    "tiny_encoder": Example("the encoder at 2 layers of width 64, for tests", 1000, 128),
    "tiny_decoder": Example("the decoder at 2 layers of width 64, for tests", 1000),
}


def _find(name: str) -> Example:
    if name not in EXAMPLES:
        raise ValueError(f"no example is called {name!r}; there are: {', '.join(EXAMPLES)}")
    return EXAMPLES[name]


def _bits(seed: int, stream: str) -> np.random.Philox:
    # Philox's raw words are the same in every numpy; the streams of Generator need not be.
    return np.random.Philox(key=[seed, zlib.crc32(stream.encode())])


def draw(
    seed: int, stream: str, shape: tuple[int, ...], mean: float, std: float
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Bell-shaped float32 values of `shape`, a function of the seed and the stream's name alone.

    Each is the sum of the four 16-bit parts of one random word: exact integers until the last
    two operations, hence the same bytes on every machine, and within 3.5 `std` of the mean.
    """
    count = int(np.prod(shape, dtype=np.int64))
    words = _bits(seed, stream).random_raw(count)
    total = np.zeros(count, np.float64)
    for part in range(4):
        total += (words >> np.uint64(16 * part)) & np.uint64(0xFFFF)
    # Four uniform integers below 2**16: mean 2 (2**16 - 1), variance 4 (2**32 - 1) / 12.
    total -= 2 * (2**16 - 1)
    total *= std / ((2**32 - 1) / 3) ** 0.5
    total += mean
    return total.astype(np.float32).reshape(shape)


def make_example(name: str, path: Path, seed: int = 0, *, external_data: bool = False) -> Path:
    """Write the example `name` as a complete ONNX file and return its path.

    Args: `path`, the file to write (its folder is made); `seed`, 0 or more, decides the weights;
    `external_data` puts them into `<file>.data` beside it, as happens above 1.9 GiB anyway.
    """
    import onnx

    _find(name)
    path = Path(path)
    model = onnx.load(GRAPHS / f"{name}.onnx")
    recipe: dict[str, list[float]] = json.loads((GRAPHS / f"{name}.json").read_text())
    size = 0
    for tensor in model.graph.initializer:
        if tensor.name in recipe:
            mean, std = recipe[tensor.name]
            values = draw(seed, tensor.name, tuple(tensor.dims), mean, std)
            tensor.raw_data = values.astype("<f4", copy=False).tobytes()
            size += values.nbytes
    path.parent.mkdir(parents=True, exist_ok=True)
    # Made under another name and moved: nobody ever sees half a model.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        made = Path(folder) / path.name
        if external_data or size > SINGLE_FILE_BYTES:
            data = f"{path.name}.data"
            onnx.save(model, made, save_as_external_data=True, location=data)
            (Path(folder) / data).chmod(made.stat().st_mode)  # onnx makes it private
            os.replace(Path(folder) / data, path.with_name(data))
        else:
            onnx.save(model, made)
        os.replace(made, path)
    return path


def example_inputs(
    name: str, batch: int = 1, sequence: int = 128, seed: int = 0
) -> dict[str, np.ndarray]:
    """Random inputs of the example: `input_ids` and `attention_mask`, int64[batch, sequence].

    Every row ends in padding of up to a quarter of its length, so that the mask matters.
    """
    example = _find(name)
    if batch < 1 or sequence < 1:
        raise ValueError(f"batch and sequence must be at least 1, not {batch} and {sequence}")
    if example.max_sequence is not None and sequence > example.max_sequence:
        raise ValueError(f"{name} takes at most {example.max_sequence} tokens, not {sequence}")
    words = _bits(seed, INPUT_STREAM).random_raw(batch * (sequence + 1)).reshape(batch, -1)
    padding = words[:, :1] % np.uint64(sequence // 4 + 1)
    columns = np.arange(sequence, dtype=np.uint64)
    return {
        "input_ids": (words[:, 1:] % np.uint64(example.vocabulary)).astype(np.int64),
        "attention_mask": (columns < np.uint64(sequence) - padding).astype(np.int64),
    }
