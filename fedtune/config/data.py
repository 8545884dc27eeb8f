"""The settings of the data: where examples come from, and which column is what."""

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from fedtune.config.section import OpenFraction, Section


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
