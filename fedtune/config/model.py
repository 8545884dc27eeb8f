"""The settings of the base model."""

from pydantic import Field, model_validator

from fedtune.config.section import Section


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
