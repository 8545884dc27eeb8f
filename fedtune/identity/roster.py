"""Who takes part: the identities of all silos, signed by the consortium, version by version.

The roster is what silos trust in each other; the coordinator only carries it. A silo pins the
consortium's key when it joins, and never takes an older version than it has seen, so that a
revoked silo can't be brought back by an old roster.
"""

from pathlib import Path
from typing import Annotated, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BeforeValidator, Field, PositiveInt, ValidationError, model_validator

from fedtune.atomic import write_text
from fedtune.config.section import Section
from fedtune.errors import InputError
from fedtune.identity.signed import seal, unseal

MAX_SILOS = 10_000
_KIND = "roster"

SiloName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""Letters, digits and `._-`: it becomes a certificate's name, a file's and a line in logs."""
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RequestNumber = Annotated[int, Field(ge=0, lt=2**53)]
"""A node gives each of its requests a higher one. 0: from before they had numbers."""


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class Member(Section):
    """A silo: its identity, and the two keys that it signed for. All digests and keys are hex."""

    silo: SiloName
    identity: Hex32 = Field(description="Ed25519 public key.")
    tls_key: Hex32 = Field(description="SHA-256 of the public key of its client certificate.")
    flower_key: str = Field(max_length=1000, description="Public key that Flower knows it by.")
    revoked: bool = False
    request: RequestNumber = Field(0, description="The newest request of it that was accepted.")

    def same_keys(self, other: "Member") -> bool:
        """Whether these are the keys of `other`."""
        return (self.tls_key, self.flower_key) == (other.tls_key, other.flower_key)


class Roster(Section):
    """One version. `members` are in the order of their names; a name or key occurs once."""

    federation: Annotated[str, Field(min_length=1, max_length=200)]
    version: PositiveInt
    members: Annotated[tuple[Member, ...], BeforeValidator(_tuple), Field(max_length=MAX_SILOS)]

    @model_validator(mode="after")
    def _members_are_distinct(self) -> "Roster":
        names = [member.silo for member in self.members]
        if names != sorted(names):
            raise ValueError("members are not in the order of their names")
        for field in ("silo", "identity", "tls_key", "flower_key"):
            values = [getattr(member, field) for member in self.members]
            if len(set(values)) < len(values):
                raise ValueError(f"two members have the same {field}")
        return self

    def member(self, silo: str) -> Member | None:
        """The silo of that name, unless it is unknown or revoked."""
        return next((m for m in self.members if m.silo == silo and not m.revoked), None)

    def by_tls_key(self, digest: str) -> Member | None:
        """The silo whose certificate has the key with this digest, unless it is revoked."""
        return next((m for m in self.members if m.tls_key == digest and not m.revoked), None)

    def with_member(self, new: Member) -> "Roster":
        """The next version, with `new`, which may be a silo's own request for other keys.

        Raises ValueError where the name is another identity's, revoked or not, where a key is
        another silo's, and where an older request than was accepted before asks for other keys.
        """
        known = next((m for m in self.members if m.silo == new.silo), None)
        if known is not None and known.identity != new.identity:
            raise ValueError(f"the name `{new.silo}` belongs to another identity")
        if known is not None and known.revoked:
            raise ValueError(
                f"`{new.silo}` is revoked; it joins again with new keys and a new name"
            )
        if known is not None and not known.same_keys(new) and new.request <= known.request:
            raise ValueError(
                f"its keys are not the roster's, and the request (number {new.request}) is no "
                f"newer than the last that was accepted (number {known.request}): it may be an "
                "old file, with keys that the silo has given up; ask the silo for its newest "
                "request.json, or to make one by `fedtune client renew`"
            )
        if known is not None:
            new = new.model_copy(update={"request": max(new.request, known.request)})
        return self._next([*(m for m in self.members if m.silo != new.silo), new])

    def without(self, silo: str) -> "Roster":
        """The next version, in which `silo` is revoked. Raises ValueError if it is not there."""
        if self.member(silo) is None:
            raise ValueError(f"there is no silo `{silo}`")
        return self._next(
            [m.model_copy(update={"revoked": m.revoked or m.silo == silo}) for m in self.members]
        )

    def _next(self, members: list[Member]) -> "Roster":
        ordered = tuple(sorted(members, key=lambda member: member.silo))
        try:  # not `model_copy`, which checks nothing
            return Roster(federation=self.federation, version=self.version + 1, members=ordered)
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"]) from None


def sign(roster: Roster, consortium: Ed25519PrivateKey) -> str:
    """The roster as text that the consortium has signed."""
    return seal(_KIND, roster.model_dump_json(), consortium)


def verify(text: str, consortium: bytes, *, at_least: int = 1) -> Roster:
    """The roster in an untrusted `text`. `consortium` is the pinned key (32 bytes).

    Raises ValueError on a wrong signature, on a version below `at_least` (one that was seen), and
    on anything that is not a roster.
    """
    content = unseal(_KIND, text, consortium)
    try:
        roster = Roster.model_validate_json(content)
    except ValidationError as error:
        raise ValueError(f"is no roster ({error.errors()[0]['msg']})") from None
    if roster.version < at_least:
        raise ValueError(f"is version {roster.version}; version {at_least} was seen before")
    return roster


def save(roster: Roster, consortium: Ed25519PrivateKey, path: Path) -> None:
    """Replace the roster's file by a signed new version."""
    write_text(path, sign(roster, consortium))


def load(path: Path, consortium: bytes, *, at_least: int = 1) -> Roster:
    """The roster in `path`. Raises InputError on what `verify` refuses."""
    try:
        return verify(path.read_text(encoding="utf-8"), consortium, at_least=at_least)
    except FileNotFoundError:
        raise InputError("no such file", where=path, expected="a roster") from None
    except (OSError, ValueError) as error:
        raise InputError(str(error), where=path, expected="the consortium's roster") from None
