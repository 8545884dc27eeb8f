"""Where each privacy unit goes, decided by nothing but itself and the seed.

Drawing places among all units would move many when one is added. Under a promise that adding or
removing a unit changes little, that would be a change which no noise covers.
"""

import hashlib
import json
from collections.abc import Iterator

import numpy as np

from fedtune.data.examples import CONTENT_COLUMNS, ExampleSet

_BATCH_ROWS = 1024


def chances(examples: ExampleSet, seed: int, purpose: str) -> np.ndarray:
    """A number of each row's unit, evenly spread over [0, 1): float64 [rows].

    It is a hash of `seed`, `purpose` and the unit's id; of the row's words where no column names
    ids, since a position would change with each row before it. Rows of one unit have one number.
    """
    key = hashlib.sha256(json.dumps([seed, purpose]).encode()).digest()
    found = np.empty(len(examples), dtype=np.float64)
    for row, said in enumerate(_names(examples)):
        digest = hashlib.blake2b(said.encode(), key=key, digest_size=8).digest()
        found[row] = (int.from_bytes(digest, "big") >> 11) / 2**53
    return found


def _names(examples: ExampleSet) -> Iterator[str]:
    """What each row's unit is known by: an id, else the row's words."""
    content = CONTENT_COLUMNS[examples.format]
    rows = examples.rows.select_columns(["unit_id", "where", *content])
    for batch in rows.with_format("arrow").iter(_BATCH_ROWS):
        for row in batch.to_pylist():
            named = row["unit_id"] != row["where"]
            yield row["unit_id"] if named else json.dumps([row[name] for name in content])
