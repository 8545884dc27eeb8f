"""The one tree of settings. A run is a `RunConfig` and the data it names.

Field descriptions are the documentation: the config reference and the starter files are
generated from them.
"""

import hashlib
import json
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from fedtune.config.adapter import AdapterConfig
from fedtune.config.data import DataConfig
from fedtune.config.federation import NEED_SINGLE_DELTAS, FederationConfig
from fedtune.config.model import ModelConfig
from fedtune.config.output import OutputConfig
from fedtune.config.privacy import PrivacyConfig
from fedtune.config.section import Section
from fedtune.config.secure_aggregation import SecureAggregationConfig
from fedtune.config.task import TaskConfig
from fedtune.config.training import TrainingConfig


class RunConfig(Section):
    """Everything that decides a run's result."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    task: TaskConfig = Field(default_factory=TaskConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    federation: FederationConfig = Field(default_factory=FederationConfig)
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig)
    secure_aggregation: SecureAggregationConfig = Field(default_factory=SecureAggregationConfig)
    output: OutputConfig = Field(default_factory=OutputConfig)
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Seed of everything.")

    @field_validator("secure_aggregation", mode="before")
    @classmethod
    def _on_or_off(cls, given: Any) -> Any:
        return {"enabled": given} if isinstance(given, bool) else given

    @model_validator(mode="before")
    @classmethod
    def _a_secure_sum_has_no_single_deltas(cls, given: Any) -> Any:
        """Refuse, by both names, what secure aggregation would hide, or sends in its own way."""
        federation = given.get("federation") if isinstance(given, dict) else None
        if not isinstance(federation, dict) or not _is_on(given.get("secure_aggregation")):
            return given
        rule = federation.get("aggregation")
        if rule in NEED_SINGLE_DELTAS:
            raise ValueError(
                f"`federation.aggregation: {rule}` needs single deltas, which "
                "`secure_aggregation` hides from the coordinator"
                + (": there each silo bounds its own" if rule == "norm_bounding" else "")
            )
        encoding = federation.get("delta_encoding", "float32")
        if encoding != "float32":
            raise ValueError(
                f"`federation.delta_encoding: {encoding}` can't be used with "
                "`secure_aggregation`, which has a fixed point of its own"
            )
        return given

    @model_validator(mode="after")
    def _sections_agree(self) -> "RunConfig":
        self._check_validation()
        self._check_adapter()
        self._check_labels()
        self._check_aggregation()
        self._check_privacy()
        self._check_secure()
        return self

    def _check_validation(self) -> None:
        """Refuse evaluation without rows, and rows without evaluation."""
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

    def _check_adapter(self) -> None:
        """Refuse an adapter that the model or the way it is trained can't have."""
        adapter = self.adapter
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

    def _check_aggregation(self) -> None:
        """Refuse an aggregation rule that wants other adapters or another optimizer."""
        adapter, federation = self.adapter, self.federation
        if federation.aggregation in ("fedex", "svd"):
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
                    "`federation.server_optimizer` can't be used with "
                    f"`federation.aggregation: {federation.aggregation}`"
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

    def _check_secure(self) -> None:
        """Refuse a promise that is kept with single deltas, and a bound that nobody knows."""
        if not self.secure_aggregation.enabled:
            return
        if self.privacy.mode == "central":
            raise ValueError(
                "`privacy.mode: central` clips single deltas at the coordinator, which "
                "`secure_aggregation` hides from it"
            )
        if self.privacy.mode != "distributed":  # which has a grid of its own
            self.secure_aggregation.bound_in(self.training)

    def _check_labels(self) -> None:
        """Refuse rows without labels for a task of labels, and labels that nothing would read."""
        if self.task.name == "sequence_classification" and self.data.format not in (
            "auto",
            "text_label",
        ):
            raise ValueError("`task.name: sequence_classification` needs `data.format: text_label`")
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
        if self.in_private_steps:
            if self.task.packing:
                raise ValueError(
                    f"`privacy.mode: {mode}` can't be used with `task.packing`: a row would hold "
                    "examples of several units"
                )
            for field in ("micro_batch_size", "max_grad_norm"):
                if training.changed(field):
                    ours = "max_physical_batch" if field[1] == "i" else "clipping_norm"
                    raise ValueError(
                        f"`training.{field}` can't be used with `privacy.mode: {mode}`; set "
                        f"`privacy.{ours}`"
                    )
        if mode == "central":
            self._check_central()
        if mode == "distributed":
            self._check_distributed()
        named = self.data.source == "embedded" or self.data.columns.privacy_unit is not None
        if self.in_private_steps:
            self._check_units(named=named)
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

    def _check_units(self, *, named: bool) -> None:
        """Refuse settings that the unit, or how units are taken, would leave unused."""
        if self.privacy.unit == "record" or not named:
            for field in ("max_records_per_unit", "unit_reduction"):
                if self.privacy.changed(field):
                    raise ValueError(
                        f"`privacy.{field}` needs `privacy.unit: patient`, and here each record is "
                        "a unit; leave it at its default, or name the column with the patient's "
                        "id (`data.columns.privacy_unit`)"
                    )
        if self.privacy.sampling == "full":
            if self.training.changed("batch_size"):
                raise ValueError(
                    "`training.batch_size` can't be used with `privacy.sampling: full`, which "
                    "takes every unit at every step; leave it at its default"
                )
            if self.training.max_steps is None:
                raise ValueError(
                    "`privacy.sampling: full` needs `training.max_steps`: without batches there "
                    "are no passes to count steps by"
                )

    def _check_central(self) -> None:
        """Refuse what a noised sum of clipped deltas can't be, and turns that don't come out."""
        federation, noise = self.federation, self.privacy.server_noise
        if federation.aggregation != "fedavg":
            raise ValueError(
                "`privacy.mode: central` adds noise to a sum of clipped deltas, which is what it "
                f"is counted for: it needs `federation.aggregation: fedavg`, not "
                f"`{federation.aggregation}`"
            )
        turns = 1 / federation.fraction
        if noise != "gaussian" and abs(turns - round(turns)) > 0.01 * turns:
            raise ValueError(
                f"`privacy.server_noise: {noise}` has silos take turns: `federation.fraction` is "
                f"one over a whole number (1, 0.5, 0.25), not {federation.fraction}"
            )

    def _check_distributed(self) -> None:
        """Refuse what would leave a sum without its noise, or units uncounted."""
        federation, secure, training = self.federation, self.secure_aggregation, self.training
        if not secure.enabled:
            raise ValueError(
                "`privacy.mode: distributed` needs `secure_aggregation: true`: one silo's share of "
                "the noise doesn't protect what it sends"
            )
        for field in ("max_weight", "bound"):
            if secure.changed(field):
                raise ValueError(
                    f"`secure_aggregation.{field}` can't be used with `privacy.mode: distributed`, "
                    "which clips to `privacy.clipping_norm` and weighs all alike"
                )
        least = max(3, secure.max_colluders + 2)
        if federation.min_silos < least:
            raise ValueError(
                "`privacy.mode: distributed` draws noise for the smallest sum that may be opened: "
                f"set `federation.min_silos`, at least {least}; the more, the less noise"
            )
        if federation.aggregation != "fedavg":
            raise ValueError(
                "`privacy.mode: distributed` needs `federation.aggregation: fedavg`, not "
                f"`{federation.aggregation}`"
            )
        if not self.in_private_steps:
            return
        wanted = {
            "training.max_steps": (training.max_steps, 1),
            "training.optimizer": (training.optimizer, "sgd"),
            "training.momentum": (training.momentum, 0.0),
            "training.weight_decay": (training.weight_decay, 0.0),
            "training.lr_schedule": (training.lr_schedule, "constant"),
            "training.warmup_steps": (training.warmup_steps, 0),
            "federation.proximal_mu": (federation.proximal_mu, 0.0),
        }
        for name, (found, value) in wanted.items():
            if found != value:
                raise ValueError(
                    "`privacy.mode: distributed` with a unit in the silos makes each round one "
                    f"step of gradient descent on all silos' units: `{name}` is to be {value}, not "
                    f"{found}. `federation.server_optimizer` can make more of it; with "
                    "`privacy.unit: silo` silos take steps of their own"
                )

    def deciding(self) -> dict[str, Any]:
        """The settings that decide the result: not where it goes, who computes, or who waits."""
        return self.model_dump(
            mode="json",
            exclude={
                "output": True,
                "privacy": {"ledger", "outside_budget"},
                "federation": {"engine", "min_silos", "round_timeout_seconds"},
            },
        )

    @property
    def private(self) -> bool:
        """Whether anybody is promised differential privacy."""
        return self.privacy.mode != "none"

    @property
    def in_private_steps(self) -> bool:
        """Whether units within the data are clipped one by one, rather than what silos send."""
        mode = self.privacy.mode
        return mode == "local" or (mode == "distributed" and self.privacy.unit != "silo")

    @property
    def hash(self) -> str:
        """SHA-256 of the settings that decide the result; told as `settings_hash`."""
        line = json.dumps(self.deciding(), sort_keys=True)
        return hashlib.sha256(line.encode()).hexdigest()


def _is_on(section: Any) -> bool:
    """Whether a section as it was written, short or long, is enabled."""
    return bool(section.get("enabled") if isinstance(section, dict) else section)
