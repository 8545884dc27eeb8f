"""The one tree of settings. A run is a `RunConfig` and the data it names.

Field descriptions are the documentation: the config reference and the starter files are
generated from them.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from fedtune.config.privacy import PrivacyConfig
from fedtune.config.section import BelowOne, OpenFraction, Section


class ModelConfig(Section):
    """The base model."""

    path: str = Field("embedded", description="`embedded`, a local folder, or a hub id.")
    revision: str | None = Field(None, description="Hub revision (branch, tag or commit).")
    load_in_4bit: bool = Field(
        False, description="Load the base in 4-bit NF4 with double quantization (QLoRA)."
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Leave false in a hospital."
    )

    @model_validator(mode="after")
    def _embedded_model_has_no_versions(self) -> "ModelConfig":
        for field in ("revision", "trust_remote_code"):
            if self.changed(field) and self.path == "embedded":
                raise ValueError(f"`{field}` can't be used with `path: embedded`")
        return self


class ColumnsConfig(Section):
    """Which column of the files plays which part. Null: the part's own name, if there."""

    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    label: str | None = None
    record_id: str | None = Field(None, description="Unique id of a row; null: its position.")
    privacy_unit: str | None = Field(
        None, description="Whom a row belongs to (a patient id); null: every row is its own unit."
    )


class DataConfig(Section):
    """Where examples come from and how rows are read."""

    source: Literal["embedded", "files", "hub"] = Field(
        "embedded", description="`embedded` synthetic clinical notes, local `files`, or the `hub`."
    )
    train_files: list[str] = Field(
        default_factory=list,
        description="JSONL, CSV, Parquet files or `datasets` folders; globs are expanded.",
    )
    test_files: list[str] = Field(
        default_factory=list, description="Held-out files; if empty, `test_fraction` is split off."
    )
    validation_files: list[str] = Field(
        default_factory=list,
        description="train: files that `training.eval_steps` evaluates on, besides the test set.",
    )
    hub_id: str | None = Field(None, description="Hub dataset id when `source: hub`.")
    hub_split: str = Field("train", description="Split of the hub dataset.")
    format: Literal["auto", "text", "prompt_completion", "messages", "text_label"] = Field(
        "auto", description="What a row is; `auto` tells from its columns."
    )
    label_prompt: str | None = Field(
        None,
        description="text_label: learn to write a row's text after this prompt, in which `{label}` "
        "stands for its label (`causal_lm`; `fedtune synthesize` then writes texts of a label).",
    )
    columns: ColumnsConfig = Field(default_factory=ColumnsConfig)
    bad_rows: Literal["refuse", "skip"] = Field(
        "refuse", description="Refuse the run on a bad row, or skip it and count it."
    )
    test_fraction: OpenFraction = Field(
        0.1,
        description="Share of privacy units held out when there are no `test_files`. In a private "
        "run each unit is by this chance: a hash of `seed` and its id, or its words, decides.",
    )
    validation_fraction: OpenFraction | None = Field(
        None,
        description="train: share of the privacy units left for training that `training.eval_steps`"
        " evaluates on instead; null: none, or `validation_files`.",
    )
    embedded_patients: PositiveInt = Field(
        320, le=100_000, description="Patients to generate when `source: embedded`."
    )

    @model_validator(mode="after")
    def _source_has_its_fields(self) -> "DataConfig":
        if self.source == "files" and not self.train_files:
            raise ValueError("`source: files` needs `data.train_files`")
        if self.source == "hub" and not self.hub_id:
            raise ValueError("`source: hub` needs `data.hub_id`")
        if self.source != "files" and (
            self.train_files or self.test_files or self.validation_files
        ):
            raise ValueError(
                "`train_files`, `test_files` and `validation_files` need `source: files`, not "
                f"`source: {self.source}`"
            )
        if self.source != "hub" and self.hub_id:
            raise ValueError(f"`hub_id` needs `source: hub`, not `source: {self.source}`")
        self.refuse_idle("source", {"hub_split": ("hub",), "embedded_patients": ("embedded",)})
        self.refuse_idle("format", {"label_prompt": ("text_label",)})
        if self.label_prompt is not None and "{label}" not in self.label_prompt:
            raise ValueError("`label_prompt` has no `{label}`, the place of a row's label")
        if self.changed("test_fraction") and self.test_files:
            raise ValueError("`test_fraction` can't be used with `test_files`")
        if self.validation_fraction and self.validation_files:
            raise ValueError("`validation_fraction` can't be used with `validation_files`")
        return self

    @property
    def has_validation(self) -> bool:
        """Whether rows are held out for evaluation during training, besides the test set."""
        return self.validation_fraction is not None or bool(self.validation_files)


class TaskConfig(Section):
    """What is learned."""

    name: Literal["causal_lm", "sequence_classification"] = Field(
        "causal_lm", description="The task."
    )
    max_length: int = Field(256, ge=2, le=1_048_576, description="Tokens kept of an example.")
    loss_on: Literal["completion", "all"] = Field(
        "completion",
        description="causal_lm: learn the completion (or assistant turns) only, or every token.",
    )
    packing: bool = Field(
        False,
        description="causal_lm: put a batch's examples into as few rows of `max_length` as fit. "
        "Attention never crosses from one to the next: the result is the same, for less padding.",
    )
    labels: list[str] = Field(
        default_factory=list,
        description="sequence_classification: label names in order, of which a row must have one; "
        "empty: sorted from the data, which no private run does. causal_lm with "
        "`data.label_prompt`: the labels that `fedtune synthesize` writes.",
    )

    @property
    def head(self) -> Literal["causal_lm", "sequence_classification"]:
        """The kind of model that the task trains: one that says the next token, or one class."""
        return "sequence_classification" if self.name == "sequence_classification" else "causal_lm"

    @model_validator(mode="after")
    def _settings_belong_to_the_task(self) -> "TaskConfig":
        self.refuse_idle("name", dict.fromkeys(("loss_on", "packing"), ("causal_lm",)))
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("`labels` names a label twice")
        return self


class AdapterConfig(Section):
    """What is trained on top of the base model."""

    method: Literal["lora", "ia3", "prefix_tuning", "prompt_tuning", "full"] = Field(
        "lora", description="PEFT method, or `full` fine-tuning."
    )
    lora_r: PositiveInt = Field(8, le=4096, description="lora: rank.")
    lora_alpha: PositiveFloat = Field(16.0, description="lora: scale; the update is alpha/r * B A.")
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="lora: dropout.")
    target_modules: str | list[str] | None = Field(
        None,
        description="lora, ia3: `all-linear` or a list of module names. Null: `all-linear` for "
        "LoRA; for IA3 keys, values and feed-forward of the architectures that `peft` knows.",
    )
    use_rslora: bool = Field(False, description="lora: scale by alpha/sqrt(r) (rsLoRA).")
    use_dora: bool = Field(False, description="lora: weight-decomposed (DoRA).")
    freeze_a: bool = Field(
        False,
        description="lora: A stays at its shared start, only B is trained and sent (FFA-LoRA).",
    )
    num_virtual_tokens: PositiveInt = Field(
        16, le=4096, description="prefix_tuning, prompt_tuning: length of the prefix or prompt."
    )
    init_from: str | None = Field(
        None, description="Start from this saved adapter: a folder in PEFT format of the same kind."
    )

    @model_validator(mode="after")
    def _settings_belong_to_the_method(self) -> "AdapterConfig":
        self.refuse_idle("method", _ADAPTER_FIELDS)
        if self.target_modules == [] or (
            isinstance(self.target_modules, str) and self.target_modules != "all-linear"
        ):
            raise ValueError("`target_modules` is `all-linear` or a list of module names")
        if self.use_dora and self.freeze_a:
            raise ValueError(
                "`use_dora` can't be used with `freeze_a`: its scale is not linear in B"
            )
        return self


_PROMPTS = ("prefix_tuning", "prompt_tuning")
_ADAPTER_FIELDS = {
    **dict.fromkeys(
        ("lora_r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "freeze_a"), ("lora",)
    ),
    "target_modules": ("lora", "ia3"),
    "num_virtual_tokens": _PROMPTS,
    "init_from": ("lora", "ia3", *_PROMPTS),
}


class TrainingConfig(Section):
    """The optimizer loop. In a federation: of one silo in one round."""

    learning_rate: PositiveFloat = Field(2e-3, description="Peak learning rate.")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="Optimizer.")
    momentum: BelowOne = Field(0.0, description="sgd: momentum.")
    weight_decay: Annotated[float, Field(ge=0.0)] = Field(0.0, description="Weight decay.")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Decay after warm-up."
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Linear warm-up steps.")
    max_steps: PositiveInt | None = Field(None, description="Optimizer steps; null: by epochs.")
    num_epochs: PositiveFloat = Field(1.0, description="Passes over the data without `max_steps`.")
    batch_size: PositiveInt = Field(16, description="Examples a step: what privacy counts.")
    micro_batch_size: PositiveInt | None = Field(
        None, description="Examples that fit in memory at once; null: `batch_size`."
    )
    max_grad_norm: PositiveFloat | None = Field(1.0, description="Gradient clipping; null: none.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="`auto`: bf16 on a GPU that has it, else fp32."
    )
    gradient_checkpointing: bool = Field(False, description="Less memory for more time.")
    eval_steps: PositiveInt | None = Field(
        None,
        description="Evaluate every n steps (train only), on the rows of "
        "`data.validation_fraction` or `data.validation_files`; never on the test set.",
    )
    early_stopping_patience: PositiveInt | None = Field(
        None,
        description="Stop after n evaluations without a lower validation loss; keep the best.",
    )
    save_steps: PositiveInt | None = Field(
        None, description="Checkpoint every n steps (train only); null: every tenth of the run."
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> "TrainingConfig":
        if self.micro_batch_size and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"`micro_batch_size` ({self.micro_batch_size}) is larger than "
                f"`batch_size` ({self.batch_size})"
            )
        if self.early_stopping_patience and not self.eval_steps:
            raise ValueError("`early_stopping_patience` needs `training.eval_steps`")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError("`momentum` needs `optimizer: sgd`")
        if self.max_steps and self.changed("num_epochs"):
            raise ValueError("`num_epochs` needs `max_steps: null`")
        return self


class PartitionConfig(Section):
    """How one data set is divided into silos for a simulation."""

    by: Literal["column", "iid", "dirichlet", "quantity"] = Field(
        "column",
        description="A natural column, at random, label skew, or quantity skew. In a private run "
        "each unit falls into the silos' shares by a hash of its own: no other unit moves it.",
    )
    column: str | None = Field(
        None, description="Column that names the silo (`by: column`); embedded data: `specialty`."
    )
    silos: PositiveInt = Field(8, le=100_000, description="Number of silos, unless `by: column`.")
    alpha: PositiveFloat = Field(0.5, description="Dirichlet concentration; smaller: more skew.")

    @model_validator(mode="after")
    def _settings_belong_to_the_rule(self) -> "PartitionConfig":
        self.refuse_idle("by", _PARTITION_FIELDS)
        return self


_PARTITION_FIELDS = {
    "column": ("column",),
    "silos": ("iid", "dirichlet", "quantity"),
    "alpha": ("dirichlet", "quantity"),
}


class ServerOptimizerConfig(Section):
    """How the averaged delta moves the global adapter."""

    name: Literal["none", "fedavgm", "fedadam"] = Field("none", description="Server optimizer.")
    learning_rate: PositiveFloat | None = Field(
        None,
        description="fedavgm, fedadam: server learning rate; null: 1 for fedavgm, 0.01 for "
        "fedadam, whose step moves every weight by about this much.",
    )
    momentum: BelowOne = Field(0.9, description="fedavgm: momentum.")
    beta1: BelowOne = Field(0.9, description="fedadam: first moment decay.")
    beta2: BelowOne = Field(0.99, description="fedadam: second moment decay.")
    tau: PositiveFloat = Field(1e-3, description="fedadam: adaptivity floor.")

    @property
    def rate(self) -> float:
        """The server learning rate, its default resolved."""
        return self.learning_rate or (0.01 if self.name == "fedadam" else 1.0)

    @model_validator(mode="after")
    def _settings_belong_to_the_optimizer(self) -> "ServerOptimizerConfig":
        self.refuse_idle("name", _SERVER_OPTIMIZER_FIELDS)
        return self


_SERVER_OPTIMIZER_FIELDS = {
    "learning_rate": ("fedavgm", "fedadam"),
    "momentum": ("fedavgm",),
    **dict.fromkeys(("beta1", "beta2", "tau"), ("fedadam",)),
}


class FederationConfig(Section):
    """Rounds, silos and aggregation."""

    rounds: PositiveInt = Field(10, le=100_000, description="Rounds.")
    partition: PartitionConfig = Field(default_factory=PartitionConfig)
    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="Share of silos sampled each round."
    )
    min_silos: PositiveInt = Field(
        2, description="A round with fewer good replies fails and the run stops."
    )
    proximal_mu: Annotated[float, Field(ge=0.0)] = Field(
        0.0, description="FedProx: weight of the pull towards the received adapter."
    )
    aggregation: Literal["fedavg", "fedex", "svd"] = Field(
        "fedavg",
        description="`fedavg`: average what is sent. `fedex`: FedEx-LoRA, average plus the exact "
        "residual, which silos receive too. `svd`: average the products B A and truncate to "
        "`lora_r`.",
    )
    server_optimizer: ServerOptimizerConfig = Field(default_factory=ServerOptimizerConfig)
    silo_ranks: dict[str, PositiveInt] = Field(
        default_factory=dict, description="`svd` only: silo name to a rank of at most `lora_r`."
    )
    round_timeout_seconds: PositiveFloat = Field(
        3600.0, description="Deadline of a round: later replies are not waited for."
    )
    engine: Literal["inprocess", "ray"] = Field(
        "inprocess", description="simulate: in this process, or Flower's Simulation Runtime."
    )


class OutputConfig(Section):
    """Where results go."""

    dir: str = Field(
        "runs/run",
        min_length=1,
        description="The run folder: new, or empty; `~` is your home folder.",
    )
    loggers: list[Literal["tensorboard", "mlflow"]] = Field(
        default_factory=list, description="Loggers besides metrics.jsonl."
    )

    @property
    def folder(self) -> Path:
        """The run folder, `~` resolved."""
        return Path(self.dir).expanduser()

    @field_validator("dir")
    @classmethod
    def _can_be_a_folder(cls, value: str) -> str:
        try:
            path = Path(value).expanduser()
        except RuntimeError:
            raise ValueError(f"`{value}` begins with the home of a user who is not here") from None
        names = [os.fsencode(part) for part in path.parts]
        if b"\0" in os.fsencode(path):
            raise ValueError("can't be a folder's name: it holds a NUL character")
        for of, size, most in (
            ("a name in it", max(map(len, names), default=0), _LONGEST_NAME),
            ("it", len(os.fsencode(path)), _LONGEST_PATH),
        ):
            if size > most:
                raise ValueError(f"can't be a folder's name: {of} is longer than {most} bytes")
        return value


_LONGEST_NAME, _LONGEST_PATH = 255, 3000  # what file systems take, with room for the files inside


class RunConfig(Section):
    """Everything that decides a run's result."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    task: TaskConfig = Field(default_factory=TaskConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    federation: FederationConfig = Field(default_factory=FederationConfig)
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig)
    secure_aggregation: Literal[False] = Field(
        False, description="Hide single deltas from the coordinator: not in this release."
    )
    output: OutputConfig = Field(default_factory=OutputConfig)
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Seed of everything.")

    @model_validator(mode="after")
    def _sections_agree(self) -> "RunConfig":
        adapter, federation = self.adapter, self.federation
        if self.training.eval_steps and not self.data.has_validation:
            raise ValueError(
                "`training.eval_steps` needs rows to evaluate on that are not the test set: set "
                "`data.validation_fraction` (0.1, say) or `data.validation_files`"
            )
        if self.data.has_validation and not self.training.eval_steps:
            field = "validation_files" if self.data.validation_files else "validation_fraction"
            raise ValueError(
                f"`data.{field}` needs `training.eval_steps`: its rows would be held out for "
                "nothing"
            )
        if self.model.load_in_4bit and adapter.method == "full":
            raise ValueError("`model.load_in_4bit` needs an adapter: 4-bit weights can't train")
        if adapter.method == "prefix_tuning" and self.training.gradient_checkpointing:
            raise ValueError(
                "`training.gradient_checkpointing` can't be used with `adapter.method: "
                "prefix_tuning`, which lives in the attention cache"
            )
        if adapter.method in ("prefix_tuning", "prompt_tuning") and self.task.packing:
            raise ValueError(
                f"`task.packing` can't be used with `adapter.method: {adapter.method}`: only the "
                "first example of a row would follow the prompt"
            )
        if self.task.name == "sequence_classification" and self.data.format not in (
            "auto",
            "text_label",
        ):
            raise ValueError("`task.name: sequence_classification` needs `data.format: text_label`")
        self._check_labels()
        if federation.aggregation != "fedavg":
            if adapter.method != "lora":
                raise ValueError(
                    f"`federation.aggregation: {federation.aggregation}` needs "
                    "`adapter.method: lora`"
                )
            if adapter.freeze_a or adapter.use_dora:
                raise ValueError(
                    f"`federation.aggregation: {federation.aggregation}` can't be used with "
                    "`adapter.freeze_a` (already exact) or `adapter.use_dora`"
                )
            if federation.server_optimizer.name != "none":
                raise ValueError(
                    f"`federation.server_optimizer` needs `federation.aggregation: fedavg`, "
                    f"not `{federation.aggregation}`"
                )
        if federation.silo_ranks:
            if federation.aggregation != "svd":
                raise ValueError("`federation.silo_ranks` needs `federation.aggregation: svd`")
            for silo, rank in federation.silo_ranks.items():
                if rank > adapter.lora_r:
                    raise ValueError(
                        f"`federation.silo_ranks.{silo}` is {rank}, above `adapter.lora_r` "
                        f"({adapter.lora_r})"
                    )
        self._check_privacy()
        return self

    def _check_labels(self) -> None:
        """Refuse labels, or a prompt of them, that nothing would read."""
        prompt, classify = self.data.label_prompt, self.task.head == "sequence_classification"
        if classify and prompt is not None:
            raise ValueError("`data.label_prompt` needs `task.name: causal_lm`")
        if classify and not self.task.labels and self.private:
            raise ValueError(
                f"`task.labels` is empty, and with `privacy.mode: {self.privacy.mode}` labels are "
                "not read from the rows: which there are tells of the people in them. Name those "
                "that you know without the rows: `task.labels: [first, second]`"
            )
        if not classify and self.data.format == "text_label" and prompt is None:
            raise ValueError(
                "`data.format: text_label` needs `task.name: sequence_classification`, or "
                "`data.label_prompt` to learn texts of a label"
            )
        if not classify and self.task.labels and prompt is None:
            raise ValueError(
                "`task.labels` needs `task.name: sequence_classification` or `data.label_prompt`"
            )

    def _check_privacy(self) -> None:
        """Refuse what would make the promise false."""
        mode, training = self.privacy.mode, self.training
        if mode == "none":
            return
        if mode == "local":
            if self.task.packing:
                raise ValueError(
                    "`privacy.mode: local` can't be used with `task.packing`: a row would hold "
                    "examples of several units"
                )
            for field in ("micro_batch_size", "max_grad_norm"):
                if training.changed(field):
                    ours = "max_physical_batch" if field[1] == "i" else "clipping_norm"
                    raise ValueError(
                        f"`training.{field}` can't be used with `privacy.mode: local`; set "
                        f"`privacy.{ours}`"
                    )
        if mode == "central":
            self._check_central()
        named = self.data.source == "embedded" or self.data.columns.privacy_unit is not None
        if self.privacy.unit == "record" and named and self.federation.partition.by == "dirichlet":
            raise ValueError(
                "`federation.partition.by: dirichlet` places a patient by the label of their first "
                "row: one row more could move the others, which `privacy.unit: record` doesn't "
                "cover. Set `privacy.unit: patient`, or divide by `iid` or `quantity`"
            )
        if self.privacy.held_out == "refuse":
            for field in ("eval_steps", "early_stopping_patience"):
                if training.changed(field):
                    raise ValueError(
                        f"`training.{field}` chooses by rows that are somebody's: with "
                        f"`privacy.mode: {mode}` it needs `privacy.held_out: public`"
                    )

    def _check_central(self) -> None:
        """Refuse what a noised sum of clipped deltas can't be, and turns that don't come out."""
        federation, noise = self.federation, self.privacy.server_noise
        if federation.aggregation != "fedavg":
            raise ValueError(
                f"`privacy.mode: central` adds noise to a sum of deltas: it needs "
                f"`federation.aggregation: fedavg`, not `{federation.aggregation}`"
            )
        turns = 1 / federation.fraction
        if noise != "gaussian" and abs(turns - round(turns)) > 0.01 * turns:
            raise ValueError(
                f"`privacy.server_noise: {noise}` has silos take turns: `federation.fraction` is "
                f"one over a whole number (1, 0.5, 0.25), not {federation.fraction}"
            )

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the result: not where it goes, who computes, or who waits."""
        return self.model_dump(
            mode="json",
            exclude={
                "output": True,
                "privacy": {"ledger"},
                "federation": {"engine", "min_silos", "round_timeout_seconds"},
            },
        )

    @property
    def private(self) -> bool:
        """Whether anybody is promised differential privacy."""
        return self.privacy.mode != "none"

    @property
    def hash(self) -> str:
        """SHA-256 of the settings that decide the result; told as `settings_hash`."""
        line = json.dumps(self.deciding(), sort_keys=True)
        return hashlib.sha256(line.encode()).hexdigest()
