"""Fields of an untrusted record: what isn't of the kind that is due raises AbortError."""

from collections.abc import Mapping
from typing import Any

from fedtune.secagg.abort import AbortError


def text_in(record: Mapping[str, Any], name: str) -> str:
    """A text."""
    value = record.get(name)
    if not isinstance(value, str):
        raise AbortError("malformed", f"`{name}` is no text")
    return value


def texts_in(record: Mapping[str, Any], name: str) -> list[str]:
    """A list of texts."""
    return _list_in(record, name, str)


def by_silo(record: Mapping[str, Any], silos: str, values: str) -> dict[str, bytes]:
    """Bytes by silo: the lists `silos` and `values` side by side."""
    names, given = texts_in(record, silos), _list_in(record, values, bytes)
    if len(names) != len(given) or len(set(names)) < len(names):
        raise AbortError("malformed", f"`{silos}` and `{values}` don't go together")
    return dict(zip(names, given, strict=True))


def _list_in(record: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    value = record.get(name)
    if not isinstance(value, list) or not all(isinstance(one, kind) for one in value):
        raise AbortError("malformed", f"`{name}` is no list of {kind.__name__}")
    return value
