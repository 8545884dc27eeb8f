"""The wire type: a named, ordered, float32 set of tensors.

An adapter's state, a delta (trained minus received) and a server optimizer's moments are all a
`TensorSet`. Everything that clips, encodes, masks or aggregates is a pure function on it.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from fedtune.errors import InputError

Spec = tuple[tuple[str, tuple[int, ...]], ...]
"""Names and shapes in order: what a receiver expects before it reads a byte."""


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

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def spec(self) -> Spec:
        """Names and shapes, in order."""
        return tuple((name, tuple(tensor.shape)) for name, tensor in self.tensors.items())

    @property
    def count(self) -> int:
        """Number of scalars."""
        return sum(tensor.numel() for tensor in self.tensors.values())

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
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.tensors.values())

    def digest(self) -> str:
        """SHA-256 of the names, shapes and bytes: equal digests mean bit-equal sets."""
        digest = hashlib.sha256()
        for name, tensor in self.tensors.items():
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def clone(self) -> "TensorSet":
        """A copy that shares no memory."""
        return self.map(torch.clone)

    def to_bytes(self) -> bytes:
        """Serialize as safetensors: the only form in which tensors cross a process."""
        return safetensors.torch.save({n: t.contiguous() for n, t in self.tensors.items()})

    @staticmethod
    def from_bytes(payload: bytes, expected: Spec) -> "TensorSet":
        """Parse untrusted bytes. Raises ValueError unless names, shapes, dtype are `expected`."""
        if len(payload) > size_limit(expected):
            raise ValueError(f"payload has {len(payload)} bytes, at most {size_limit(expected)}")
        try:
            tensors = safetensors.torch.load(payload)
        except Exception as error:
            raise ValueError(f"payload is not safetensors: {error}") from None
        spec = tuple((name, tuple(tensors[name].shape)) for name in sorted(tensors))
        if spec != expected:
            raise ValueError(f"payload has other tensors: {spec_difference(expected, spec)}")
        for name, tensor in tensors.items():
            if tensor.dtype != torch.float32:
                raise ValueError(f"{name} is {tensor.dtype}, want float32")
        result = TensorSet(tensors)
        if not result.is_finite():
            raise ValueError("payload has NaN or infinite values")
        return result

    def save(self, path: Path) -> None:
        """Write a safetensors file. Callers that need atomicity write into a new folder."""
        path.write_bytes(self.to_bytes())

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
    """Bytes of `TensorSet.to_bytes` for a set of this spec, without making one."""
    header, end = {}, 0
    for name, shape in spec:
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    text = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + math.ceil(text / 8) * 8 + end


def size_limit(spec: Spec) -> int:
    """The most bytes that a safetensors payload of this spec may have (data plus a header)."""
    return sum(4 * math.prod(shape) + len(name) + 256 for name, shape in spec) + 4096


def spec_difference(want: Spec, got: Spec) -> str:
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
