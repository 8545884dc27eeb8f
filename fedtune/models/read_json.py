"""Read a JSON object that another program, or a damaged disk, may have written."""

import json
from pathlib import Path
from typing import Any

from fedtune.errors import InputError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    except (OSError, ValueError) as error:
        raise InputError(f"is damaged ({error})", where=path, expected="JSON") from None
    if not isinstance(content, dict):
        raise InputError("is damaged", where=path, expected="a JSON object")
    return content
