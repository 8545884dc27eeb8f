"""From the config's adapter section to the settings of `peft`, one function a method."""

from inspect import signature
from typing import Any

from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedtune.config.adapter import AdapterConfig
from fedtune.errors import InputError

PEFT_TASKS = {"causal_lm": "CAUSAL_LM", "sequence_classification": "SEQ_CLS"}
HEADS = ("classifier", "score")
"""What classification heads are called: `peft` trains layers of these names whole."""


def peft_settings(config: AdapterConfig, model: nn.Module, task: str) -> Any:
    """The `PeftConfig` for any method but `full`. Layers that are new to the model train whole."""
    settings: dict[str, Any] = {"task_type": PEFT_TASKS[task]}
    new = [name for name in getattr(model, "new_layers", ()) if name.split(".")[0] not in HEADS]
    if new:
        settings["modules_to_save"] = new
    return _METHODS[config.method](config, model, settings)


def check_fits(model: Any, config: AdapterConfig, task: str) -> None:
    """Raise InputError on a method that this model can't be trained with, or not rightly."""
    reads_last = task == "sequence_classification" and hasattr(model, "score")
    if config.method == "prompt_tuning" and reads_last:
        raise InputError(
            "can't be used with a decoder that classifies: it reads the last token, which a "
            "prompt moves into the padding",
            where="adapter.method",
            expected="`lora`, `ia3` or `prefix_tuning`, or an encoder",
        )
    if config.method == "prefix_tuning":
        takers = (model.forward, model.base_model.forward)
        if not any("past_key_values" in signature(taker).parameters for taker in takers):
            raise InputError(
                "needs a model that takes keys and values from a cache",
                where="adapter.method",
                expected="`lora`, `ia3` or `prompt_tuning`",
            )


def _lora(config: AdapterConfig, model: nn.Module, settings: dict[str, Any]) -> Any:
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.target_modules or "all-linear",
        fan_in_fan_out=_input_first(model),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        **settings,
    )


def _ia3(config: AdapterConfig, model: nn.Module, settings: dict[str, Any]) -> Any:
    """IA3 (Liu et al. 2022). Named modules are scaled at their output; by default also inputs of
    the feed-forward, as in the paper.
    """
    if config.target_modules is not None:
        settings |= {"target_modules": config.target_modules, "feedforward_modules": []}
    return IA3Config(fan_in_fan_out=_input_first(model), **settings)


def _prefix_tuning(config: AdapterConfig, model: nn.Module, settings: dict[str, Any]) -> Any:
    """Keys and values before each layer's own (Li and Liang 2021), without the projection."""
    return PrefixTuningConfig(num_virtual_tokens=config.num_virtual_tokens, **settings)


def _prompt_tuning(config: AdapterConfig, model: nn.Module, settings: dict[str, Any]) -> Any:
    """Embeddings before the text's (Lester et al. 2021), which start as those of random tokens."""
    return PromptTuningConfig(
        num_virtual_tokens=config.num_virtual_tokens,
        prompt_tuning_init="SAMPLE_VOCAB",
        **settings,
    )


_METHODS = {
    "lora": _lora,
    "fed_sb": _lora,
    "ia3": _ia3,
    "prefix_tuning": _prefix_tuning,
    "prompt_tuning": _prompt_tuning,
}


def _input_first(model: nn.Module) -> bool:
    """Whether linear layers hold weights as [in, out], as GPT-2's do (unless they are 4-bit)."""
    return any(isinstance(module, Conv1D) for module in model.modules())
