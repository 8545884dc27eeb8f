"""The wire type: a named, ordered, float32 set of tensors.

An adapter's state, a delta (trained minus received) and a server optimizer's moments are all a
`TensorSet`. Everything that clips, encodes, masks or aggregates is a pure function on it.
"""

import hashlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from fedtune.errors import InputError

Spec = tuple[tuple[str, tuple[int, ...]], ...]
"""Names and shapes in order: what a receiver expects before it reads a byte."""

Shapes = tuple[tuple[str, Any], ...]
Layout = dict[str, list[str]]
"""Names and shapes ("8x64") as they are sent."""

WIRE_DTYPE = "float32"
WIRE_STYPE = "fedtune.raw-le"
"""How tensors cross a process: the bare scalars in order of names, row by row, little-endian."""

_looked_through: WeakValueDictionary[int, "TensorSet"] = WeakValueDictionary()

# received tensors are views of immutable bytes; a TensorSet is never written to
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


@dataclass(frozen=True)
class TensorSet:
    """An immutable, name-ordered mapping of float32 CPU tensors of any shape."""

    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        ordered = {name: self.tensors[name] for name in sorted(self.tensors)}
        for name, tensor in ordered.items():
            if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
                raise TypeError(f"{name}: want float32 on the CPU, got {tensor.dtype}")
        object.__setattr__(self, "tensors", ordered)

    def __getattr__(self, name: str) -> Any:
        # a set made by `of_flat` has its views when they are asked for; a fold never asks
        whole = self.memory
        if name != "tensors" or whole is None:
            raise AttributeError(f"{type(self).__name__} has no `{name}`")
        parts = whole.split([math.prod(shape) for _, shape in self.spec])
        views = {n: part.view(s) for (n, s), part in zip(self.spec, parts, strict=True)}
        object.__setattr__(self, "tensors", views)
        return views

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @cached_property
    def spec(self) -> Spec:
        """Names and shapes, in order."""
        return tuple((name, tuple(tensor.shape)) for name, tensor in self.tensors.items())

    @property
    def count(self) -> int:
        """Number of scalars."""
        return sum(math.prod(shape) for _, shape in self.spec)

    @property
    def payload_bytes(self) -> int:
        """Payload size in bytes, without names."""
        return 4 * self.count

    def map(self, function: Callable[[Tensor], Tensor]) -> "TensorSet":
        """Apply `function` to each tensor."""
        return TensorSet({name: function(tensor) for name, tensor in self.tensors.items()})

    def zip(self, other: "TensorSet", function: Callable[[Tensor, Tensor], Tensor]) -> "TensorSet":
        """Apply `function` to each pair of tensors. Raises ValueError if the specs differ."""
        if self.spec != other.spec:
            raise ValueError(f"tensor sets differ: {spec_difference(self.spec, other.spec)}")
        return TensorSet(
            {name: function(tensor, other[name]) for name, tensor in self.tensors.items()}
        )

    def __add__(self, other: "TensorSet") -> "TensorSet":
        return self.zip(other, torch.add)

    def __sub__(self, other: "TensorSet") -> "TensorSet":
        return self.zip(other, torch.sub)

    def __mul__(self, factor: float) -> "TensorSet":
        return self.map(lambda tensor: tensor * factor)

    def norm(self) -> float:
        """Euclidean norm over all scalars, accumulated in float64."""
        return math.sqrt(sum(float(t.double().square().sum()) for t in self.tensors.values()))

    def is_finite(self) -> bool:
        """Whether no scalar is NaN or infinite."""
        return _is_finite(self.flat())

    def digest(self) -> str:
        """SHA-256 of the names, shapes and bytes: equal digests mean bit-equal sets."""
        digest = hashlib.sha256()
        for name, tensor in self.tensors.items():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def clone(self) -> "TensorSet":
        """A copy that shares no memory."""
        return self.map(torch.clone)

    @property
    def memory(self) -> Tensor | None:
        """The one tensor, float32 [count], that all are views of in order, if there is one."""
        return self.__dict__.get("_flat")

    def flat(self) -> Tensor:
        """All scalars in order, float32 [count]: a view if they lie so in memory, else a copy."""
        whole = self.memory
        if whole is None:
            parts = [tensor.reshape(-1) for tensor in self.tensors.values()]
            whole = torch.cat(parts) if parts else torch.zeros(0)
        return whole

    @staticmethod
    def of_flat(whole: Tensor, spec: Spec) -> "TensorSet":
        """The tensors of `spec`, in order of names, as views of `whole`, float32 [count]."""
        if whole.dtype != torch.float32 or whole.device.type != "cpu":
            raise TypeError(f"want float32 on the CPU, got {whole.dtype}")
        if whole.shape != (sum(math.prod(shape) for _, shape in spec),):
            raise ValueError(f"{tuple(whole.shape)} scalars are not those of the spec")
        if any(first >= second for (first, _), (second, _) in itertools.pairwise(spec)):
            raise ValueError("the spec is not in order of names")
        result: TensorSet = object.__new__(TensorSet)
        result.__dict__.update(_flat=whole, spec=spec)
        return result

    def to_wire(self) -> tuple[Layout, tuple[str, tuple[int, ...], str, bytes]]:
        """The layout and one array (dtype, shape, serialization, bytes): one copy of the values."""
        if self.memory is not None:
            data = _little_endian(self.memory).tobytes()
        else:
            data = b"".join(_little_endian(tensor).data for tensor in self.tensors.values())
        return layout_of(self.spec), (WIRE_DTYPE, (self.count,), WIRE_STYPE, data)

    @staticmethod
    def from_wire(layout: Mapping[str, Any], array: Any, expected: Spec) -> "TensorSet":
        """An untrusted array (`dtype`, `shape`, `stype`, `data`) as views of its bytes, no copy.

        Raises ValueError unless all is as `expected`: names, shapes, dtype, exact byte count,
        and every scalar finite.
        """
        check_layout(layout, expected)
        count = sum(math.prod(shape) for _, shape in expected)
        if (array.dtype, array.stype) != (WIRE_DTYPE, WIRE_STYPE):
            raise ValueError(f"sent {array.dtype} as {array.stype}, want float32 as {WIRE_STYPE}")
        if type(array.data) is not bytes or len(array.data) != 4 * count:
            raise ValueError(f"not the {4 * count} bytes of {count} float32 were sent")
        return _looked_at(array.data, expected)

    def save(self, path: Path) -> None:
        """Write a safetensors file. Callers that need atomicity write into a new folder."""
        safetensors.torch.save_file({n: t.contiguous() for n, t in self.tensors.items()}, path)

    @staticmethod
    def load(path: Path) -> "TensorSet":
        """Read a safetensors file; casts to float32. Raises InputError if it is not one."""
        try:
            tensors = safetensors.torch.load_file(path)
        except FileNotFoundError:
            raise InputError("file not found", where=path) from None
        except Exception as error:
            raise InputError(f"not a safetensors file ({error})", where=path) from None
        return TensorSet({name: tensor.float() for name, tensor in tensors.items()})


def payload_size(spec: Spec) -> int:
    """Bytes of a set of this spec on the wire, without making one."""
    return 4 * sum(math.prod(shape) for _, shape in spec)


def sizes_of(spec: Spec) -> list[int]:
    """Scalars of each tensor, in order."""
    return [math.prod(shape) for _, shape in spec]


def layout_of(spec: Spec) -> Layout:
    """Names and shapes as they are sent."""
    return {**_layout(spec)}


def check_layout(layout: Mapping[str, Any], expected: Spec) -> None:
    """Raise ValueError unless an untrusted layout is that of `expected`."""
    wanted = _layout(expected)
    if any(layout.get(key) != wanted[key] for key in wanted):
        raise ValueError(f"other tensors were sent: {_layout_difference(wanted, layout)}")


def _is_finite(whole: Tensor) -> bool:
    # a finite sum has finite terms; a sum that overflows says nothing
    return math.isfinite(float(whole.sum())) or bool(np.isfinite(whole.numpy()).all())


def _looked_at(data: bytes, expected: Spec) -> TensorSet:
    """Views of untrusted bytes of the right count, or ValueError if a scalar isn't finite.

    Bytes can't change, so that the same object is looked through once: as long as a set that
    views it lives, its id is its own. A simulation gives one object to all its silos.
    """
    seen = _looked_through.get(id(data))
    if seen is not None and seen.spec == expected:
        return seen
    scalars = np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)
    whole = torch.from_numpy(scalars) if data else torch.zeros(0)
    if not _is_finite(whole):
        raise ValueError("NaN or infinite values were sent")
    result = TensorSet.of_flat(whole, expected)
    if scalars.base is not None:  # else a copy, which keeps nothing alive
        _looked_through[id(data)] = result
    return result


def _little_endian(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.numpy(), dtype="<f4")


@lru_cache(maxsize=8)
def _layout(spec: Spec) -> Layout:
    names, shapes = [name for name, _ in spec], ["x".join(map(str, shape)) for _, shape in spec]
    return {"names": names, "shapes": shapes}


def _layout_difference(wanted: Layout, layout: Mapping[str, Any]) -> str:
    names, shapes = layout.get("names"), layout.get("shapes")
    if not isinstance(names, list) or not isinstance(shapes, list) or len(names) != len(shapes):
        return "no list of names and one of shapes"
    want = zip(wanted["names"], wanted["shapes"], strict=True)
    return spec_difference(tuple(want), tuple(zip(map(str, names), shapes, strict=True)))


def spec_difference(want: Shapes, got: Shapes) -> str:
    """One line that names the first differences between two specs."""
    wanted, found = dict(want), dict(got)
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    shapes = [
        f"{name} is {found[name]}, want {wanted[name]}"
        for name in wanted
        if name in found and wanted[name] != found[name]
    ]
    parts = []
    if missing:
        parts.append(f"missing {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}")
    if extra:
        parts.append(f"unexpected {', '.join(extra[:3])}{' ...' if len(extra) > 3 else ''}")
    parts += shapes[:3]
    return "; ".join(parts) or "none"
