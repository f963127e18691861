"""Declared input shapes and the user's `--shape` in, one static shape for each input out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autosched.ir.graph import ModelError

SIZES_OF_EXAMPLES = (1, 128)  # what a suggested flag puts for dimensions nobody gave


@dataclass(frozen=True)
class InputSpec:
    """dims: per dimension its size, its symbol, or "" where the graph says nothing; None where
    not even the rank is known."""

    name: str
    dtype: str
    dims: tuple[int | str, ...] | None


def bind_shapes(
    specs: tuple[InputSpec, ...], given: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """A shape for each input. One symbol has one size throughout, so one flag often does.

    Raises: ModelError for a name that is no input, a contradiction, or a dimension left free.
    """
    names = [s.name for s in specs]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ModelError(
            f"--shape {unknown[0]}: the model has no such input; it has {', '.join(names)}"
        )
    sizes: dict[str, tuple[int, str]] = {}  # symbol: (size, the flag that gave it)
    for spec in specs:
        if spec.name in given:
            _check(spec, given[spec.name], sizes)
    return {s.name: _filled(s, specs, given, sizes) for s in specs}


def flag(name: str, shape: tuple[int, ...]) -> str:
    return f"--shape {name}={','.join(map(str, shape))}"


def _check(spec: InputSpec, shape: tuple[int, ...], sizes: dict[str, tuple[int, str]]) -> None:
    text = flag(spec.name, shape)
    if any(s < 0 for s in shape):
        raise ModelError(f"{text}: sizes are not negative")
    if spec.dims is None:
        return
    if len(shape) != len(spec.dims):
        raise ModelError(
            f"{text} has {len(shape)} dimensions, the graph declares {_declared(spec)}"
        )
    for size, declared in zip(shape, spec.dims):
        if isinstance(declared, int) and declared != size:
            raise ModelError(f"{text} contradicts the graph, which declares {_declared(spec)}")
        if isinstance(declared, str) and declared:
            before = sizes.setdefault(declared, (size, text))
            if before[0] != size:
                raise ModelError(
                    f"{text} makes {declared!r} {size}, but {before[1]} makes it {before[0]}; "
                    "a symbol of the graph has one size"
                )


def _filled(
    spec: InputSpec,
    specs: tuple[InputSpec, ...],
    given: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, tuple[int, str]],
) -> tuple[int, ...]:
    if spec.name in given:
        return given[spec.name]
    if spec.dims is None:
        raise ModelError(
            f"the graph does not say which shape the input {spec.name!r} has; "
            f"give it, for example {flag(spec.name, SIZES_OF_EXAMPLES)}"
        )
    free = [d for d in spec.dims if isinstance(d, str) and d not in sizes]
    if free:
        raise ModelError(
            f"the input {spec.name!r} has the free dimension {free[0]!r} in {_declared(spec)}; "
            f"kernels are tuned for a size, so give one, for example {_suggested(spec, sizes)}"
        )
    return tuple(sizes[d][0] if isinstance(d, str) else d for d in spec.dims)


def _declared(spec: InputSpec) -> str:
    return f"[{', '.join(str(d) or '?' for d in spec.dims or ())}]"


def _suggested(spec: InputSpec, sizes: Mapping[str, tuple[int, str]]) -> str:
    """A flag that would do: known sizes kept, the first free dimension 1, others 128."""
    guesses = iter((SIZES_OF_EXAMPLES[0], *(SIZES_OF_EXAMPLES[1],) * 64))
    filled: dict[str, int] = {}
    shape = []
    for n, dim in enumerate(spec.dims or ()):
        if isinstance(dim, int):
            shape.append(dim)
        elif dim in sizes:
            shape.append(sizes[dim][0])
        else:
            shape.append(filled.setdefault(dim or f"?{n}", next(guesses)))
    return flag(spec.name, tuple(shape))
