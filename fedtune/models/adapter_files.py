"""The files of an adapter in PEFT format."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

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
