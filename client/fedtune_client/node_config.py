"""A node's one YAML file: where its data are, which base models it has, and what it allows."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveFloat, field_validator

from fedtune.config.data import DataConfig
from fedtune.config.load import load_settings
from fedtune.config.section import Section
from fedtune.identity.roster import SiloName
from fedtune_client.policy import BaseModelConfig, PolicyConfig

NODE_FILE = "node.yaml"


class NodeConfig(Section):
    """All that a node is told by its own people."""

    silo: SiloName = Field(description="This silo's name in the federation.")
    consortium: Annotated[str, Field(pattern=r"^[0-9a-fA-F ]{64,79}$")] = Field(
        description="Fingerprint of the consortium's key, as its people told it."
    )
    data: DataConfig = Field(description="This silo's rows; as `data` of a run.")
    base_models: list[BaseModelConfig] = Field(
        min_length=1, description="The base models that runs may use."
    )
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    ledger: str | None = Field(
        None, description="Budget ledger; null: `ledger/budget.sqlite` in the node's folder."
    )
    heartbeat_seconds: PositiveFloat = Field(
        30.0, description="How often the node says that it is there."
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
