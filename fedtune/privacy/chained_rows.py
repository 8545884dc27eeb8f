"""A SQLite file of rows that are only ever added, each chained to the one before by a keyed hash.

Three files lie beside each other: the rows, the key (`.key`) and the head (`.head`), a signed note
of how many rows there are, without which a tail cut off would not show. A row's hash is
HMAC-SHA256, under the key, of its number, the former row's hash and its own text, so whoever has no
key can't make a changed row fit. A row may name a blob of data, which is kept once, by its hash.
"""

import hashlib
import hmac
import json
import os
import secrets
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtune.atomic import flush, write_text
from fedtune.errors import InputError

_TABLES = {
    "rows": "number INTEGER PRIMARY KEY, body TEXT NOT NULL, hash TEXT NOT NULL",
    "blobs": "hash TEXT PRIMARY KEY, content BLOB NOT NULL",
}
_WAIT_SECONDS = 120


@dataclass(frozen=True)
class Row:
    """One row: its number from 1, its text's JSON object, and its hash."""

    number: int
    body: Mapping[str, Any]
    hash: str


@dataclass(frozen=True)
class Damage:
    """What is wrong, and at which row (0: the file as a whole)."""

    row: int
    problem: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.problem}" if self.row else self.problem


@dataclass(frozen=True)
class ChainedRows:
    """The files at `path`, and the secret key of their hashes."""

    path: Path
    key: bytes

    @staticmethod
    def open(path: Path) -> "ChainedRows":
        """The rows at `path`; makes the three files if none of them is there.

        Raises InputError when a file is readable by others, not ours, or there without its key.
        """
        try:
            opened = ChainedRows(path, _key(path))
            _make_private(path)
            with opened._write() as connection:
                if _make_tables(connection) and not _beside(path, "head").exists():
                    opened._write_head(connection)
        except OSError as error:
            raise InputError(f"can't be used ({error.strerror})", where=path) from None
        return opened

    @contextmanager
    def adding(self) -> Iterator["Addition"]:
        """Read and add rows while no other process adds any; all are kept, or on an error none.

        Rows that were added are on the disk when the block has ended, whatever happens then.
        Raises InputError on damage, before anything is added.
        """
        with self._write() as connection:
            yield self._addition(connection)
        with self._write() as connection:  # nobody signs a number that another has just overtaken
            self._write_head(connection)

    @contextmanager
    def trying(self) -> Iterator["Addition"]:
        """The same as `adding`, but when the block has ended nothing of it is kept."""
        with self._write() as connection:
            yield self._addition(connection)
            connection.execute("ROLLBACK")

    def _addition(self, connection: sqlite3.Connection) -> "Addition":
        if found := self._damage(connection):
            raise _damaged(self.path, found)
        return Addition(self, connection)

    def rows(self) -> list[Row]:
        """All rows, as they are. Raises InputError when the file can't be read."""
        with self._read() as connection:
            return list(_rows(connection))

    def blob(self, digest: str) -> bytes:
        """A blob's content by its hash. Raises InputError when the file can't be read."""
        with self._read() as connection:
            return _blob(connection, digest)

    def damage(self) -> list[Damage]:
        """Everything that is not as it was written; empty if nothing is."""
        try:
            with self._read() as connection:
                return self._damage(connection)
        except InputError as error:
            return [Damage(0, error.problem)]

    def _damage(self, connection: sqlite3.Connection) -> list[Damage]:
        found: list[Damage] = []
        named: set[str | None] = set()
        hashes, before = {0: ""}, 0
        for number, body, digest in _raw(connection):
            if number != before + 1:
                found.append(Damage(before + 1, "is gone"))
            if digest == self._row_hash(number, hashes[before], body):
                named.add(json.loads(body).get("blob"))
            else:
                found.append(Damage(number, "was edited, or is not where it was"))
            hashes[number], before = digest, number
        found += [Damage(0, problem) for problem in self._bad_blobs(connection, named)]
        found += [Damage(0, problem) for problem in self._bad_head(hashes)]
        return found + [Damage(0, problem) for problem in _bad_triggers(connection)]

    def _bad_blobs(self, connection: sqlite3.Connection, named: set[str | None]) -> Iterator[str]:
        missing = named - {None}
        for digest, content in connection.execute("SELECT hash, content FROM blobs"):
            if digest not in named:
                yield f"data {str(digest)[:16]} belong to no row"
            elif not isinstance(content, bytes) or self._hash("blob", content) != digest:
                yield f"data {digest[:16]} were edited"
            missing.discard(digest)
        yield from (f"data {str(digest)[:16]} are gone" for digest in missing)

    def _bad_head(self, hashes: Mapping[int, str]) -> Iterator[str]:
        head = _read_head(_beside(self.path, "head"))
        if head is None:
            yield "the head file is gone or is not one"
        elif not hmac.compare_digest(head["hash"], self._head_hash(head["rows"], head["last"])):
            yield "the head file was edited"
        elif head["rows"] not in hashes:
            yield f"there were {head['rows']} rows, the last are gone"
        elif hashes[head["rows"]] != head["last"]:
            yield f"row {head['rows']} is not the one that the head file knows"

    def _write_head(self, connection: sqlite3.Connection) -> None:
        """Sign how many rows there are. A crash before leaves a head of fewer, which is true."""
        number, last = _last(connection)
        head = {"rows": number, "last": last, "hash": self._head_hash(number, last)}
        write_text(_beside(self.path, "head"), json.dumps(head) + "\n")

    def _head_hash(self, rows: int, last: str) -> str:
        return self._hash("head", f"{rows}\0{last}".encode())

    def _row_hash(self, number: int, former: str, body: str) -> str:
        return self._hash("row", f"{number}\0{former}\0{body}".encode())

    def _hash(self, kind: str, content: bytes) -> str:
        return hmac.digest(self.key, kind.encode() + b"\0" + content, hashlib.sha256).hex()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction, with the only lock for writing from its start."""
        with self._connected() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                if connection.in_transaction:
                    connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._connected() as connection:
            connection.execute("BEGIN")
            yield connection

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        try:
            opened = sqlite3.connect(self.path, timeout=_WAIT_SECONDS, isolation_level=None)
            with closing(opened) as connection:
                # a commit is on the disk when it returns, the removal of its journal as well
                connection.execute("PRAGMA synchronous = EXTRA")
                yield connection
        except sqlite3.DatabaseError as error:
            raise InputError(f"can't be used ({error})", where=self.path) from None


@dataclass(frozen=True)
class Addition:
    """What may be done inside `ChainedRows.adding` and `trying`."""

    file: ChainedRows
    connection: sqlite3.Connection

    def rows(self) -> list[Row]:
        """All rows so far."""
        return list(_rows(self.connection))

    def blob(self, digest: str) -> bytes:
        """A blob's content by its hash."""
        return _blob(self.connection, digest)

    def add(self, body: Mapping[str, Any], blob: bytes | None = None) -> Row:
        """Add one row; `blob`, kept once, is named in its body by its hash."""
        whole = dict(body)
        if blob is not None:
            whole["blob"] = self.file._hash("blob", blob)
            self.connection.execute(
                "INSERT INTO blobs SELECT :hash, :content"
                " WHERE NOT EXISTS (SELECT 1 FROM blobs WHERE hash = :hash)",
                {"hash": whole["blob"], "content": blob},
            )
        number, last = _last(self.connection)
        text = json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False)
        digest = self.file._row_hash(number + 1, last, text)
        self.connection.execute("INSERT INTO rows VALUES (?, ?, ?)", (number + 1, text, digest))
        return Row(number + 1, whole, digest)


def _beside(path: Path, end: str) -> Path:
    return path.with_name(f"{path.name}.{end}")


def _key(path: Path) -> bytes:
    """The key beside `path`; a new one if neither is there."""
    place = _beside(path, "key")
    if not place.exists():
        if path.exists() or _beside(path, "head").exists():
            raise InputError(
                "the key of the ledger is gone",
                where=place,
                mend="put it back from where it was moved to, or from a backup",
            )
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _publish(place, secrets.token_bytes(32))
    _check_private(place)
    try:
        key = bytes.fromhex(place.read_text())
    except ValueError:
        key = b""
    if len(key) != 32:
        raise InputError("is not the key of a ledger", where=place, expected="64 hex digits")
    return key


def _publish(place: Path, key: bytes) -> None:
    """Write a new key, whole; of two processes that do so at once the first one's stays."""
    draft = place.with_name(f"{place.name}.{os.getpid()}.part")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(key.hex())
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, place)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    flush(place.parent)


def _make_private(path: Path) -> None:
    """Make an empty file of ours alone unless there is one; SQLite's journal takes its mode."""
    if not path.exists():
        if _beside(path, "head").exists():
            raise InputError(
                "the ledger is gone, only its head is left",
                where=path,
                mend="put it back from where it was moved to, or from a backup",
            )
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    _check_private(path)


def _check_private(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise InputError(
            f"others may read or write it (mode {mode:04o})",
            where=path,
            expected="mode 0600",
            mend=f"see who had access, then: chmod 600 {path}",
        )


def _make_tables(connection: sqlite3.Connection) -> bool:
    """Whether the file was empty, and has its tables now."""
    if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        return False
    for table, columns in _TABLES.items():
        connection.execute(f"CREATE TABLE {table} ({columns}) STRICT")
    for name, text in _triggers().items():
        connection.execute(f"CREATE TRIGGER {name} {text}")
    return True


def _triggers() -> dict[str, str]:
    return {
        f"no_{verb}_of_{table}": f"BEFORE {verb} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, 'rows of a ledger are only ever added'); END"
        for table in _TABLES
        for verb in ("UPDATE", "DELETE")
    }


def _bad_triggers(connection: sqlite3.Connection) -> Iterator[str]:
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
    there = dict(connection.execute(query).fetchall())
    for name, text in _triggers().items():
        if there.pop(name, None) != f"CREATE TRIGGER {name} {text}":
            yield f"the trigger {name} is gone or was changed"
    yield from (f"there is a trigger that is not ours: {name}" for name in there)


def _raw(connection: sqlite3.Connection) -> Iterator[tuple[int, str, str]]:
    yield from connection.execute("SELECT number, body, hash FROM rows ORDER BY number")


def _rows(connection: sqlite3.Connection) -> Iterator[Row]:
    return (Row(number, json.loads(body), hash_) for number, body, hash_ in _raw(connection))


def _blob(connection: sqlite3.Connection, digest: str) -> bytes:
    found = connection.execute("SELECT content FROM blobs WHERE hash = ?", (digest,)).fetchone()
    if found is None:
        raise InputError(f"data {digest[:16]} are gone")
    return bytes(found[0])


def _last(connection: sqlite3.Connection) -> tuple[int, str]:
    query = "SELECT number, hash FROM rows ORDER BY number DESC LIMIT 1"
    found = connection.execute(query).fetchone()
    return (int(found[0]), str(found[1])) if found else (0, "")


def _read_head(place: Path) -> dict[str, Any] | None:
    try:
        head = json.loads(place.read_text())
        sound = type(head["rows"]) is int and isinstance(head["last"], str)
        return head if sound and isinstance(head["hash"], str) and len(head) == 3 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _damaged(path: Path, found: list[Damage]) -> InputError:
    return InputError(
        "the ledger is damaged, so nothing is charged to it:\n  "
        + "\n  ".join(map(str, found[:5])),
        where=path,
        mend="find out who changed it (`fedtune budget verify`); a backup's three files go "
        "together",
    )
