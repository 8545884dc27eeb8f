"""Open what a run left: a run's folder, an adapter in PEFT format or a whole model."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict

from fedtune.config.load import load_config
from fedtune.config.model import ModelConfig
from fedtune.config.schema import RunConfig
from fedtune.errors import InputError
from fedtune.models.adapter_files import ADAPTER_CONFIG, adapter_spec
from fedtune.models.base import load_base, load_tokenizer
from fedtune.models.base_files import path_of, published_name
from fedtune.models.labels import labels_of_adapter, labels_of_model
from fedtune.models.read_json import read_json
from fedtune.tensors import spec_difference

_TASKS = {"CAUSAL_LM": "causal_lm", "SEQ_CLS": "sequence_classification"}
_KINDS = "a run's folder, an adapter's (adapter_config.json) or a model's (config.json)"


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode on the CPU, its tokenizer, its task and a classifier's labels.

    `base` is what the adapter sits on, or the model itself; `config` is the run's, if the folder
    is a run's.
    """

    model: Any
    tokenizer: Any
    task: str
    labels: tuple[str, ...]
    base: ModelConfig
    config: RunConfig | None = None


def load_saved(folder: Path, *, with_adapter: bool = True) -> Loaded:
    """Open a run's folder, an adapter's or a model's; without its adapter: the base alone.

    Raises InputError if there is no such folder, it holds none of these, a file is damaged, or
    the adapter is of another base.
    """
    if not folder.is_dir():
        problem = "is a file" if folder.is_file() else "no such folder"
        raise InputError(problem, where=folder, expected=_KINDS)
    if (folder / "config.yaml").is_file():
        return _run(folder, with_adapter)
    if (folder / ADAPTER_CONFIG).is_file():
        return _adapter(folder, _base_of(folder), with_adapter)
    if (folder / "config.json").is_file():
        if not with_adapter:
            raise InputError("is a whole model: it has no adapter to leave out", where=folder)
        return _whole(folder, ModelConfig(path=str(folder)))
    raise InputError("holds no model", where=folder, expected=_KINDS)


def adapter_folder(folder: Path) -> Path:
    """Where the adapter of a run's folder, or of an adapter's, lies."""
    return folder / "adapter" if (folder / "config.yaml").is_file() else folder


def _run(folder: Path, with_adapter: bool) -> Loaded:
    config = load_config(folder / "config.yaml")
    adapter = adapter_folder(folder)
    if not adapter.is_dir():
        raise InputError(
            "there is no adapter yet",
            where=adapter,
            mend=f"finish the run that {folder / 'config.yaml'} describes, with `--resume`",
        )
    if config.adapter.method != "full":
        named = read_json(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
        wanted = published_name(config.model.path)
        if named != wanted:
            raise InputError(
                f"the adapter is of another base, `{named}`",
                where=adapter / ADAPTER_CONFIG,
                expected=f"`{wanted}`, the base in {folder / 'config.yaml'}",
            )
        loaded = _adapter(adapter, config.model, with_adapter)
    elif with_adapter:
        loaded = _whole(adapter, _moved(config.model, adapter))
    else:
        labels = labels_of_model(adapter) if _classifies(adapter) else ()
        loaded = _bare(adapter, config.model, config.task.head, labels)
    return replace(loaded, config=config)


def _adapter(folder: Path, base: ModelConfig, with_adapter: bool) -> Loaded:
    task = _TASKS.get(str(read_json(folder / ADAPTER_CONFIG).get("task_type")))
    if task is None:
        raise InputError(
            "the adapter's task is not known here",
            where=folder / ADAPTER_CONFIG,
            expected=f"`task_type`: {' or '.join(_TASKS)}",
        )
    labels = labels_of_adapter(folder) if task == "sequence_classification" else ()
    loaded = _bare(folder, base, task, labels)
    if not with_adapter:
        return loaded
    return replace(loaded, model=put_adapter(loaded.model, folder))


def put_adapter(model: Any, folder: Path) -> Any:
    """The model with the adapter in `folder`, in evaluation mode.

    Raises InputError unless each of its tensors is one that the model has a place for.
    """
    spec = adapter_spec(folder)
    try:
        with torch.random.fork_rng(devices=[]):
            model = PeftModel.from_pretrained(model, str(folder), local_files_only=True)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise _not_of(folder, str(error).strip().splitlines()[-1].strip()) from None
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    expected = tuple((name, tuple(state[name].shape)) for name in sorted(state))
    if spec != expected:
        raise _not_of(folder, spec_difference(expected, spec))
    return model.eval()


def _not_of(folder: Path, why: str) -> InputError:
    return InputError(
        f"the adapter doesn't fit its base ({why[:300]})",
        where=folder,
        expected="an adapter of the base that its adapter_config.json names",
    )


def _bare(folder: Path, base: ModelConfig, task: str, labels: tuple[str, ...]) -> Loaded:
    """The base alone, with the tokenizer that travelled with the adapter, if one did."""
    loaded = load_base(base, task, labels)
    tokenizer = loaded.tokenizer
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = _at(folder, load_tokenizer, _moved(base, folder))
    return Loaded(loaded.model.eval(), tokenizer, task, labels, base)


def _whole(folder: Path, model: ModelConfig) -> Loaded:
    task = "sequence_classification" if _classifies(folder) else "causal_lm"
    labels = labels_of_model(folder) if task == "sequence_classification" else ()
    loaded = _at(folder, load_base, model, task, labels)
    return Loaded(loaded.model.eval(), loaded.tokenizer, task, labels, model)


def _moved(model: ModelConfig, folder: Path) -> ModelConfig:
    """The settings of a model that is loaded from a folder of a run."""
    return model.model_copy(update={"path": str(folder), "revision": None})


def _at(folder: Path, load: Any, *arguments: Any) -> Any:
    """Call `load`; a refusal names `folder`, not the config's field."""
    try:
        return load(*arguments)
    except InputError as error:
        raise InputError(error.problem, where=folder, expected=error.expected) from None


def _base_of(folder: Path) -> ModelConfig:
    named = read_json(folder / ADAPTER_CONFIG)
    path, revision = named.get("base_model_name_or_path"), named.get("revision")
    if not isinstance(path, str) or not path:
        raise InputError(
            "names no base model",
            where=folder / ADAPTER_CONFIG,
            expected="`base_model_name_or_path`: `fedtune:embedded`, a folder or a hub id",
        )
    return ModelConfig(path=path_of(path), revision=revision if isinstance(revision, str) else None)


def _classifies(folder: Path) -> bool:
    kinds = read_json(folder / "config.json").get("architectures") or []
    return any(str(kind).endswith("ForSequenceClassification") for kind in kinds)
