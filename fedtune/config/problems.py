"""What pydantic found wrong, in the words of the person who wrote the file."""

import difflib
import re
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from fedtune.config.schema import RunConfig
from fedtune.errors import InputError

_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a section of `key: value` settings",
    "model_type": "a section of `key: value` settings",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "string_type": "text",
}


def explain(
    error: ValidationError,
    tree: dict[str, Any],
    places: Mapping[tuple[Any, ...], str],
    source: str,
    root: type[BaseModel] = RunConfig,
) -> list[str]:
    """One message a field that is wrong: where it stands, what was expected, what to do.

    `root` is what the file was to be.
    """
    found: dict[tuple[Any, ...], list[Any]] = {}
    for item in error.errors(include_url=False):
        found.setdefault(_in_tree(item["loc"], tree), []).append(item)
    return [
        str(_problem(at, items, _place(at, places, _places_named(items, places) or source), root))
        for at, items in found.items()
    ]


def _section_at(path: tuple[Any, ...], root: type[BaseModel]) -> type[BaseModel] | None:
    """The section that a dotted path names, if it names one."""
    section = root
    for key in path:
        field = section.model_fields.get(key)
        if field is None or not _is_section(field.annotation):
            return None
        section = typing.cast(type[BaseModel], field.annotation)
    return section


def _field_names(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted field below `section`."""
    names = []
    for name, field in section.model_fields.items():
        names.append(prefix + name)
        if _is_section(field.annotation):
            inner = typing.cast(type[BaseModel], field.annotation)
            names += _field_names(inner, f"{prefix}{name}.")
    return names


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _in_tree(loc: tuple[Any, ...], tree: Any) -> tuple[Any, ...]:
    """`loc` without the parts that pydantic adds for the members of a union."""
    for depth, key in enumerate(loc):
        inside = (
            key in tree
            if isinstance(tree, dict)
            else (isinstance(tree, list) and isinstance(key, int) and key < len(tree))
        )
        if not inside:
            return loc[:depth]
        tree = tree[key]
    return loc


def _place(at: tuple[Any, ...], places: Mapping[tuple[Any, ...], str], source: str) -> str:
    for depth in range(len(at), 0, -1):
        if at[:depth] in places:
            return places[at[:depth]]
    return source


def _places_named(items: list[Any], places: Mapping[tuple[Any, ...], str]) -> str:
    """Where the fields stand that a message on several sections names; "" if none was set."""
    names = re.findall(r"`([a-z_0-9]+(?:\.[a-z_0-9]+)+)", items[0]["msg"])
    found = (places.get(tuple(name.split("."))) for name in names)
    return " and ".join(dict.fromkeys(place for place in found if place))


def _problem(
    at: tuple[Any, ...], items: list[Any], place: str, root: type[BaseModel]
) -> InputError:
    field = ".".join(str(key) for key in at)
    where = f"{place}: {field}" if field else place
    first = items[0]
    if first["type"] == "extra_forbidden":
        return InputError("unknown field", where=where, mend=_nearest_field(at, root))
    if first["type"] == "value_error":
        return InputError(first["msg"].removeprefix("Value error, "), where=where)
    expected = " or ".join(dict.fromkeys(_expected(item) for item in items))
    return InputError(
        f"{_shown(first['input'])} is not allowed",
        where=where,
        expected=expected,
        mend=_nearest_value(first),
    )


def _expected(item: Any) -> str:
    if item["type"] == "literal_error":
        return f"one of {item['ctx']['expected']}"
    return _EXPECTED.get(item["type"]) or item["msg"].removeprefix("Input should be ")


def _shown(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"{value!r}" if isinstance(value, str) else f"`{value}`"


def _nearest_field(at: tuple[Any, ...], root: type[BaseModel]) -> str:
    section = _section_at(at[:-1], root)
    prefix = "".join(f"{key}." for key in at[:-1])
    siblings = list(section.model_fields) if section else []
    close = difflib.get_close_matches(str(at[-1]), siblings, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{prefix}{close[0]}`?"
    ends: dict[str, str] = {}
    for name in _field_names(root):
        ends.setdefault(name.rpartition(".")[2], name)
    elsewhere = difflib.get_close_matches(str(at[-1]), list(ends), n=1, cutoff=0.75)
    if elsewhere:
        return f"did you mean `{ends[elsewhere[0]]}`?"
    return f"remove it; fields here: {', '.join(siblings)}"


def _nearest_value(item: Any) -> str | None:
    if item["type"] != "literal_error" or not isinstance(item["input"], str):
        return None
    choices = [word.strip(" '") for word in item["ctx"]["expected"].replace(" or ", ",").split(",")]
    close = difflib.get_close_matches(item["input"], choices, n=1, cutoff=0.5)
    return f"did you mean `{close[0]}`?" if close else None
