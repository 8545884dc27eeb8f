"""How a roster is shown, to the coordinator's people and to a silo's."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedtune.identity.roster import Roster


def print_roster(listed: "Roster", as_json: bool) -> None:
    """Print who takes part: a silo a line, with its identity."""
    if as_json:
        print(listed.model_dump_json(indent=2))
        return
    print(f"{listed.federation}, version {listed.version}")
    for member in listed.members:
        print(f"{member.silo}  {member.identity}{'  revoked' if member.revoked else ''}")
