"""A node's one YAML file: where its data are, which base models it has, and what it allows."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt, StringConstraints, ValidationError, field_validator

from fedtune.config.data import DataConfig
from fedtune.config.load import load_settings
from fedtune.config.model import ModelConfig
from fedtune.config.section import Section
from fedtune.errors import InputError
from fedtune.identity.roster import SiloName
from fedtune.models.base_files import base_digest
from fedtune_client.policy import BaseModelConfig, PolicyConfig

NODE_FILE = "node.yaml"


class NodeConfig(Section):
    """All that a node is told by its own people."""

    silo: SiloName = Field(description="This silo's name in the federation.")
    consortium: Annotated[str, StringConstraints(strip_whitespace=True)] = Field(
        pattern=r"^([0-9a-fA-F]{4} ?){16}$",
        description="Fingerprint of the consortium's key, as its people told it.",
    )
    data: DataConfig = Field(description="This silo's rows; as `data` of a run.")
    base_models: list[BaseModelConfig] = Field(
        min_length=1, description="The base models that runs may use."
    )
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    kept_runs: PositiveInt = Field(
        10,
        description="Runs before the last whose replies to two rounds are kept, to be sent again: "
        "so many private ones, and so many others.",
    )
    ledger: str | None = Field(
        None, description="Budget ledger; null: this machine's own, as of `train` and `simulate`."
    )

    @field_validator("data")
    @classmethod
    def _data_are_files(cls, data: DataConfig) -> DataConfig:
        if data.source == "hub":
            raise ValueError("a node's data are files on its own disk, not `source: hub`")
        return data


def load_node(folder: Path) -> NodeConfig:
    """The settings of the node in `folder`. Raises InputError."""
    return load_settings(folder / NODE_FILE, NodeConfig)


def new_config(silo: str, consortium: str, data: list[str]) -> NodeConfig:
    """Settings to begin with: these files, the embedded base model, the strictest policy."""
    tree = {
        "silo": silo,
        "consortium": consortium,
        "data": {"source": "files", "train_files": data},
        "base_models": [{"path": "embedded", "sha256": base_digest(ModelConfig())}],
    }
    try:
        return NodeConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(str(first["msg"]), where=f"--{where}") from None
