"""Raw rows from files: JSONL, CSV, Parquet, Arrow and `datasets` folders.

A reader streams `RawRow`s. What can't be read as a row comes as a `RawRow` with a `problem`, so
that the caller can count it; what can't be read at all is an `InputError`.
"""

import csv
import glob
import gzip
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from fedtune.errors import InputError

Row = dict[str, Any]
_BATCH_ROWS = 256
_KNOWN = "a .jsonl, .csv, .parquet or .arrow file, or a folder written by `Dataset.save_to_disk`"
_OTHERWISE = "save it as comma-separated .csv, or as .jsonl: one JSON object a line, in UTF-8"


@dataclass(frozen=True)
class RawRow:
    """A row as the file has it, or the problem that stands in its place. `line` counts from 1."""

    line: int
    row: Row | None = None
    problem: str | None = None


def expand_files(patterns: Sequence[str]) -> list[Path]:
    """Paths that `patterns` name, globs expanded and sorted, each once.

    Raises `InputError` for a pattern that matches nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        there = os.path.exists(path)  # noqa: PTH110 - a name may be too long for pathlib
        matches = [str(path)] if there else glob.glob(str(path), recursive=True)  # noqa: PTH207 - absolute patterns
        if not matches:
            raise InputError(
                "no such file" if not glob.has_magic(pattern) else "the pattern matches no file",
                where=pattern,
                expected=_KNOWN,
                mend="check the path; it is relative to the folder the command runs in",
            )
        found.update(dict.fromkeys(Path(match) for match in sorted(matches)))
    return list(found)


def check_kind(path: Path) -> None:
    """Raise `InputError` unless `path` is of a kind that `read_file` knows; reads no row."""
    if path.is_dir():
        _check_folder(path)
    else:
        _reader_of(path)


def read_file(path: Path) -> Iterator[RawRow]:
    """Stream the rows of one file or `datasets` folder. Raises `InputError` if it isn't one."""
    reader = _FOLDER if path.is_dir() else _reader_of(path)
    try:
        yield from reader(path)
    except (OSError, EOFError, pa.ArrowException) as error:
        raise InputError(f"can't be read: {error}", where=path, expected=_KNOWN) from error


def read_jsonl(path: Path) -> Iterator[RawRow]:
    """One JSON object a line; blank lines are passed over."""
    with _open(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _json_row(number, line)


def _json_row(number: int, line: bytes) -> RawRow:
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        return RawRow(number, problem="not UTF-8 text")
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        return RawRow(number, problem=f"not JSON ({_json_slip(text.strip()) or error})")
    if not isinstance(value, dict):
        return RawRow(number, problem=f"a JSON {type(value).__name__}, not an object")
    return RawRow(number, value) if value else RawRow(number, problem="an empty object")


def _json_slip(line: str) -> str | None:
    """The usual ways in which a line isn't JSON, in words."""
    if line in ("[", "[{"):
        return "a JSON array, where one JSON object a line is wanted"
    if line.endswith(("},", "}, ")):
        return "an object with a comma after it"
    if re.search(r",\s*[}\]]", line[-200:]):
        return "a comma before a closing brace"
    return None


def _object(pairs: list[tuple[str, Any]]) -> Row:
    """JSON leaves open which of two equal keys counts: neither does here."""
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in row if keys.count(key) > 1)
        raise ValueError(f"the key `{twice[:80]}` stands twice")
    return row


def read_csv(path: Path) -> Iterator[RawRow]:
    """Comma-separated with a header line; a row is named by the line it begins on."""
    csv.field_size_limit(2**31 - 1)  # a discharge letter is longer than Python's 131,072
    with _open(path) as raw:
        reader = csv.reader(_decoded(raw), strict=True)
        header = _header(reader, f"{path}:1")
        begin = reader.line_num + 1
        try:
            for cells in reader:
                if cells:
                    yield _csv_row(begin, header, cells)
                begin = reader.line_num + 1
        except csv.Error as error:
            yield RawRow(begin, problem=f"not CSV ({error}); the rest of the file is unread")


def _header(reader: Iterator[list[str]], where: str) -> list[str]:
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise InputError(
            f"the header line can't be read ({error})",
            where=where,
            expected="commas between columns, LF or CRLF at the end of a line",
        ) from None
    if not header or len(set(header)) < len(header):
        raise InputError("the header line is empty or repeats a column", where=where)
    if not _is_text("".join(header)):
        raise InputError("not UTF-8 text", where=where, mend="save the file as UTF-8")
    if spaced := [name for name in header if name != name.strip()]:
        raise InputError(
            f"the column `{spaced[0]}` begins or ends with a space",
            where=where,
            mend="take the spaces out of the header line",
        )
    if len(header) == 1 and re.search(r"[;\t|]", header[0]):
        raise InputError(
            f"one column, `{header[0]}`",
            where=where,
            expected="commas between columns, not semicolons, tabs or bars",
            mend="save the file with commas, or as .jsonl",
        )
    return header


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines):
        # surrogateescape keeps the bad bytes visible, so that only their own row is bad
        yield line.decode("utf-8-sig" if number == 0 else "utf-8", errors="surrogateescape")


def _csv_row(line: int, header: list[str], cells: list[str]) -> RawRow:
    if len(cells) != len(header):
        return RawRow(line, problem=f"{len(cells)} fields where the header has {len(header)}")
    if not _is_text("".join(cells)):
        return RawRow(line, problem="not UTF-8 text")
    return RawRow(line, dict(zip(header, cells, strict=True)))


def read_parquet(path: Path) -> Iterator[RawRow]:
    """Rows of a Parquet file, a batch in memory at a time; `line` is the row's number."""
    with pq.ParquetFile(path) as file:
        yield from _numbered(
            row for batch in file.iter_batches(_BATCH_ROWS) for row in batch.to_pylist()
        )


def read_arrow(path: Path) -> Iterator[RawRow]:
    """Rows of an Arrow stream or file (Feather 2), memory-mapped."""
    with pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
            yield from _numbered(row for batch in batches for row in batch.to_pylist())
        else:
            source.seek(0)
            stream = pa.ipc.open_stream(source)
            yield from _numbered(row for batch in stream for row in batch.to_pylist())


def read_dataset_folder(path: Path) -> Iterator[RawRow]:
    """Rows of a folder that `Dataset.save_to_disk` wrote."""
    _check_folder(path)
    try:
        rows = datasets.load_from_disk(str(path))
    except Exception as error:  # `datasets` has no common error class
        raise InputError(
            f"the `datasets` folder is damaged ({error!r})", where=path, expected=_KNOWN
        ) from error
    yield from read_dataset(rows)


def _check_folder(path: Path) -> None:
    """Raise `InputError` unless `path` is the folder of one dataset."""
    several = path / "dataset_dict.json"
    if several.exists():
        try:
            splits = [path / name for name in json.loads(several.read_text())["splits"]]
            first = splits[0]
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(
                f"is damaged ({error!r})", where=several, expected='{"splits": [...]}'
            ) from None
        raise InputError(
            f"the folder holds several splits: {', '.join(split.name for split in splits)}",
            where=path,
            mend=f"name one of them: {first}",
        )
    if not (path / "state.json").exists():
        raise InputError("not a `datasets` folder", where=path, expected=_KNOWN)


def read_dataset(rows: datasets.Dataset) -> Iterator[RawRow]:
    """Rows of a loaded dataset; `line` is the row's number."""
    yield from _numbered(dict(row) for row in rows)


def load_hub(hub_id: str, split: str) -> datasets.Dataset:
    """Download (or find in the local cache) one split of a hub dataset. Raises `InputError`."""
    try:
        return datasets.load_dataset(hub_id, split=split)
    except Exception as error:  # the hub's client has no common error class
        raise InputError(
            f"can't load split `{split}` of hub dataset `{hub_id}`: {error}",
            where="data.hub_id",
            mend="check the id, the split and the network, or download it and use `source: files`",
        ) from error


def _numbered(rows: Iterable[Row]) -> Iterator[RawRow]:
    return (RawRow(number, row) for number, row in enumerate(rows, 1))


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _reader_of(path: Path) -> Callable[[Path], Iterator[RawRow]]:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix.lower() not in _READERS:
        raise InputError(
            f"unknown kind of file `{suffix}`", where=path, expected=_KNOWN, mend=_OTHERWISE
        )
    return _READERS[suffix.lower()]


_FOLDER = read_dataset_folder
_READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
}
