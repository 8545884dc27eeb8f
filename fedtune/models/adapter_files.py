"""The files of an adapter in PEFT format."""

import hashlib
from pathlib import Path

from safetensors import SafetensorError, safe_open

from fedtune.data.digests import file_digest
from fedtune.errors import InputError
from fedtune.tensors import Spec

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def adapter_spec(folder: Path) -> Spec:
    """Names and shapes in an adapter's weights file. Raises InputError if it can't be read."""
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise InputError("no such file", where=path, expected="the adapter's weights")
    try:
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            return tuple((name, tuple(file.get_slice(name).get_shape())) for name in names)
    except (OSError, SafetensorError) as error:
        raise InputError(f"is damaged ({error})", where=path) from None


def adapter_digest(folder: Path) -> str:
    """SHA-256 over the files that a saved adapter is loaded from; a file that is gone counts."""
    paths = [folder / name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)]
    parts = [f"{path.name} {file_digest(path) if path.is_file() else 'gone'}" for path in paths]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
