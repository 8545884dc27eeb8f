"""Start from a saved adapter."""

from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from fedtune.errors import InputError
from fedtune.models.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_spec
from fedtune.models.read_json import read_json
from fedtune.tensors import spec_difference

_WHERE = "adapter.init_from"
_SETTINGS = {
    "peft_type": "method",
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
    "num_virtual_tokens": "num_virtual_tokens",
    "feedforward_modules": "target_modules",
}
"""What must agree beside names and shapes of tensors: `peft`'s setting and the config's."""


def start_from(model: Any, folder: Path) -> None:
    """Give an adapted model the tensors of a saved adapter.

    Raises InputError if the folder holds none, or one of another kind, rank or scale, on other
    modules, or of a base of another shape.
    """
    if not folder.is_dir():
        raise InputError(f"`{folder}` is no folder", where=_WHERE, expected="an adapter's folder")
    saved, wanted = read_json(folder / ADAPTER_CONFIG), model.peft_config["default"].to_dict()
    for theirs, ours in _SETTINGS.items():
        has, wants = _plain(saved.get(theirs)), _plain(wanted.get(theirs))
        if has != wants:
            raise InputError(
                f"the adapter in `{folder}` has `{theirs}: {has}`",
                where=_WHERE,
                expected=f"`{theirs}: {wants}`, which `adapter.{ours}` stands for",
            )
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    expected = tuple((name, tuple(state[name].shape)) for name in sorted(state))
    spec = adapter_spec(folder)
    if spec != expected:
        raise InputError(
            f"the adapter in `{folder}` is of other modules, another rank or another base "
            f"({spec_difference(expected, spec)})",
            where=_WHERE,
            expected="an adapter with the same settings, of the same base",
        )
    if model.device.type != "meta":  # a dry run's model is shapes only
        set_peft_model_state_dict(model, load_file(folder / ADAPTER_WEIGHTS))


def _plain(value: Any) -> Any:
    """Sets and enumerations as JSON has them."""
    if isinstance(value, set | list):
        return sorted(value)
    return getattr(value, "value", value)
