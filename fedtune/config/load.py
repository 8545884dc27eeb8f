"""From a YAML file and overrides to a checked `RunConfig`, and back to a file.

Every problem is found before anything is loaded, and all are told at once.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from fedtune.atomic import write_text
from fedtune.config.problems import explain
from fedtune.config.schema import RunConfig
from fedtune.config.section import Section
from fedtune.errors import InputError

Key = str | int
Places = dict[tuple[Key, ...], str]
AnySection = TypeVar("AnySection", bound=Section)


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """The settings in `path` (None: the defaults) with `section.key=value` overrides on top.

    Raises `InputError` that names each problem's file and line, its field and the mend.
    """
    tree, places = _read(path) if path is not None else ({}, {})
    for override in overrides:
        _apply(override, tree, places)
    return _checked(RunConfig, tree, places, path)


def load_settings(path: Path, kind: type[AnySection]) -> AnySection:
    """The settings of `kind` in the YAML file `path`. Raises InputError as `load_config`."""
    return _checked(kind, *_read(path), path)


def _checked(
    kind: type[AnySection], tree: dict[str, Any], places: Places, path: Path | None
) -> AnySection:
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        source = str(path) if path is not None else "command line"
        raise InputError("\n".join(explain(error, tree, places, source, kind))) from None


def save_config(config: Section, path: Path) -> None:
    """Write `config` whole, as YAML that reads back to an equal one."""
    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    text = io.StringIO()
    yaml.dump(config.model_dump(mode="json"), text)
    write_text(path, text.getvalue())


def _read(path: Path) -> tuple[dict[str, Any], Places]:
    document = _parse(_text(path), path)
    if document is None:
        raise InputError(
            "the file is empty", where=path, mend="`fedtune config init CASE` writes a starter file"
        )
    if not isinstance(document, Mapping):
        raise InputError(
            f"holds a {_kind(document)} at the top",
            where=path,
            expected="sections such as `model:` and `training:`",
        )
    places: Places = {}
    tree = _plain(document, path, (), places)
    return tree, places


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            "no such file", where=path, mend="`fedtune config init CASE` writes a starter file"
        ) from None
    except IsADirectoryError:
        raise InputError("is a folder", where=path, expected="a YAML file") from None
    except UnicodeDecodeError:
        raise InputError("is not UTF-8 text", where=path, expected="a YAML file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"can't be read: {error}", where=str(path)) from None


def _parse(text: str, path: Path | str) -> Any:
    try:
        return YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = (error.problem or "not YAML").splitlines()[0]
        raise InputError(
            problem, where=where, expected="valid YAML, each key once", mend=_quotes(problem)
        ) from None
    except RecursionError:
        raise InputError("nested too deeply", where=path, expected="sections of settings") from None
    except (YAMLError, ValueError) as error:
        problem = str(error).splitlines()[0]
        raise InputError(problem, where=path, expected="valid YAML") from None


def _quotes(problem: str) -> str | None:
    if "alias" not in problem:
        return None
    return "put a pattern that begins with `*` in quotes: ['*.jsonl']"


def _line(node: Any, key: Any) -> int | None:
    """Where `key` stands, counted from 0; in the mapping that it was merged from, if it was."""
    told = getattr(node, "lc", None)
    if told is not None and key in (told.data or {}):
        return int(told.data[key][0])
    merged = (inner for inner in getattr(node, "merge", ()) if key in inner)
    return next((_line(inner, key) for inner in merged), None)


def _plain(node: Any, path: Path, at: tuple[Key, ...], places: Places) -> Any:
    """`node` in Python's own types; `places` learns the line of each key."""
    if isinstance(node, Mapping):
        for key in node:
            line = _line(node, key)
            places[(*at, str(key))] = f"{path}:{line + 1}" if line is not None else str(path)
        return {str(k): _plain(v, path, (*at, str(k)), places) for k, v in node.items()}
    if isinstance(node, list):
        return [_plain(item, path, (*at, i), places) for i, item in enumerate(node)]
    if isinstance(node, ScalarBoolean):
        return bool(node)
    if isinstance(node, str):
        _check_text(node, path, at, places)
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _check_text(text: str, path: Path, at: tuple[Key, ...], places: Places) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        names = tuple(key for key in at if isinstance(key, str))
        where = f"{places.get(names, path)}: {'.'.join(names)}"
        raise InputError("half a surrogate pair", where=where, expected="text") from None


def _kind(value: object) -> str:
    return "list" if isinstance(value, list) else "single value"


def _apply(override: str, tree: dict[str, Any], places: Places) -> None:
    name, equals, text = override.partition("=")
    keys = tuple(name.strip().split("."))
    if not equals or not all(keys):
        raise InputError(
            "is not an override",
            where=f"command line: `{override}`",
            expected="section.key=value, such as training.learning_rate=1e-3",
        )
    where = f"command line: `{override}`"
    value = _plain(_parse(text, where), Path("command line"), keys, {})
    if text.count("#") > json.dumps(value, default=str).count("#"):
        raise InputError(
            "`#` begins a comment in YAML",
            where=where,
            mend=f"put the value in quotes: {name}=\"'...'\"",
        )
    for depth in range(len(keys)):
        places[keys[: depth + 1]] = "command line"
    inner = tree
    for key in keys[:-1]:
        if not isinstance(inner.get(key), dict):
            inner[key] = {}
        inner = inner[key]
    inner[keys[-1]] = value
