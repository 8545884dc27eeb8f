"""Merge an adapter into its base, and compare what was saved with what was trained."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from fedtune.atomic import new_folder, writable
from fedtune.errors import InputError, RunFailedError
from fedtune.models.base import load_base
from fedtune.models.base_files import published_name
from fedtune.models.four_bit import dequantized, is_four_bit
from fedtune.models.promise import carry_promise
from fedtune.models.saved import Loaded, adapter_folder, load_saved, put_adapter

_PROBE = (
    "The patient is a 54-year-old woman who was seen for chest pain and shortness of breath. She "
    "takes 5 mg of ramipril daily; her blood pressure is 131/84. What should be done next? "
)
_ELSEWHERE = "choose another folder with `--out`"
_LENGTHS = (1, 7, 40, 160)
_NOISE, _TOLERANCE, _SHARE = 3e-5, 1e-3, 0.02


@dataclass(frozen=True)
class Merged:
    """Where the merged model is and how near it came.

    All numbers are of logits on fixed probe texts: the largest difference between adapter and
    merged model, the largest that would have passed, and how far the adapter moves the base.
    """

    folder: Path
    base: str
    dequantized: bool
    largest_difference: float
    allowed_difference: float
    adapter_effect: float


def merge(folder: Path, out: Path) -> Merged:
    """Save base and adapter of a run as one model in Hugging Face format, in float32, at `out`.

    4-bit weights are dequantized first: the adapter was trained on those, not on what they were
    made of. Raises InputError if there is nothing to merge or `out` exists, RunFailedError if the
    merged model's logits are not the adapter's; then nothing is left. What the adapter says of
    its run's privacy goes along.
    """
    with writable(out, _ELSEWHERE):
        return _merge(folder, out)


def _merge(folder: Path, out: Path) -> Merged:
    if out.exists():
        raise InputError("already exists", where=out, mend=_ELSEWHERE)
    saved = load_saved(folder)
    _check_mergeable(saved, folder)
    probes = _probes(saved)
    wanted = _logits(saved.model, probes)
    with saved.model.disable_adapter():
        effect = _difference(_logits(saved.model, probes), wanted)
    four_bit = is_four_bit(saved.model)
    if four_bit:
        saved = replace(saved, model=_on_dequantized(saved, adapter_folder(folder)))
    merged = saved.model.merge_and_unload()
    with new_folder(out) as draft:
        merged.config.name_or_path = merged.name_or_path = published_name(saved.base.path)
        merged.save_pretrained(draft)
        saved.tokenizer.save_pretrained(draft)
        # an adapter from before it had its own has that of the run
        for stated in (folder, adapter_folder(folder)):
            carry_promise(stated, draft)
        del merged
        found = _logits(_reopened(saved, draft), probes)
        difference, allowed = _difference(found, wanted), _allowed(wanted, effect)
        if not difference <= allowed:
            raise RunFailedError(
                f"the merged model is not the adapter's: logits differ by up to {difference:.3g}, "
                f"at most {allowed:.3g} is rounding (the adapter moves them by {effect:.3g}); "
                "nothing was saved"
            )
    return Merged(out, saved.base.path, four_bit, difference, allowed, effect)


def _check_mergeable(saved: Loaded, folder: Path) -> None:
    settings = getattr(saved.model, "peft_config", None)
    if settings is None:
        raise InputError("is a whole model: there is nothing to merge", where=folder)
    kind = str(settings["default"].peft_type.value).lower()
    if kind not in ("lora", "ia3"):
        raise InputError(
            f"`{kind}` can't be merged: it adds positions to the text, and changes no weight that "
            "could take it up",
            where=folder,
            mend="load base and adapter with `peft`, as `fedtune generate` does",
        )


def _on_dequantized(saved: Loaded, adapter: Path) -> Any:
    """The adapter on a float32 base whose weights are those that the 4-bit base computes with."""
    whole = saved.base.model_copy(update={"load_in_4bit": False})
    model = load_base(whole, saved.task, saved.labels).model
    for name, weight in dequantized(saved.model.get_base_model()).items():
        layer, _, _ = name.replace(".base_layer", "").rpartition(".")
        target = model.get_submodule(layer)
        target.weight.data = weight.T.contiguous() if isinstance(target, Conv1D) else weight
    return put_adapter(model, adapter)


def _reopened(saved: Loaded, folder: Path) -> Any:
    classifies = saved.task == "sequence_classification"
    kind = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    trusted = saved.base.trust_remote_code
    return kind.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, trust_remote_code=trusted
    ).eval()


def _probes(saved: Loaded) -> list[Tensor]:
    """Token ids [1, length] of a few lengths that the model can take."""
    longest = getattr(saved.model.config, "max_position_embeddings", None) or max(_LENGTHS)
    ids = saved.tokenizer(_PROBE * 8, verbose=False)["input_ids"]
    return [torch.tensor([ids[:length]]) for length in _LENGTHS if length <= longest]


def _logits(model: Any, probes: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [model(input_ids=ids).logits.float() for ids in probes]


def _difference(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def _allowed(wanted: list[Tensor], effect: float) -> float:
    """What rounding explains, and never a fair part of what the adapter does."""
    scale = max(float(logits.abs().max()) for logits in wanted)
    return max(_NOISE * scale, min(_TOLERANCE * scale, _SHARE * effect))
