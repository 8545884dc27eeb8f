"""Who the people in a run's rows are: its patients or, where nobody is named, its records."""

from typing import Literal

from fedtune.config.schema import RunConfig
from fedtune.errors import InputError


def unit_of(config: RunConfig) -> Literal["record", "patient"]:
    """Who is protected; where silos are (`unit: silo`), whom their ledgers charge.

    Raises InputError when it is the patient and no column names patients.
    """
    named = config.data.source == "embedded" or config.data.columns.privacy_unit is not None
    if config.privacy.unit == "patient" and not named:
        raise InputError(
            "no column says which patient a row belongs to",
            where="data.columns.privacy_unit",
            mend="name the patient's id column there, or set `privacy.unit: record`",
        )
    unit = config.privacy.unit
    if unit is None or unit == "silo":
        return "patient" if named else "record"
    return unit
