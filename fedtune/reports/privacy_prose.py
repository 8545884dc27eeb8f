"""A privacy statement as a page to read, from the facts that privacy.json holds."""

from collections.abc import Mapping
from typing import Any

from fedtune.privacy.told import rounded_down, rounded_up

PROSE = "privacy.md"
VERSION = 1
_NONE = "No differential privacy is promised: what was trained may reveal single training examples."
EXACT = (
    "These scores are exact: they tell of the people in the rows that were scored, and no epsilon "
    "covers them. They are for those who may see these rows."
)

_SAMPLING = {
    "poisson": "Poisson sampling: each {unit} with chance {sample_rate:.4g} at every step, "
    "independently",
    "shuffle": "shuffled passes, counted without amplification: each {unit} is in one step a pass",
    "full": "no sampling: every {unit} at every step",
    "turns": "no sampling: {unit}s take turns, each in a share of {sample_rate:.4g} of the rounds",
}
_CLIPPING = {
    "flat": "to {norm:g} in L2 norm",
    "per_layer": "layer by layer, to {norm:g} in L2 norm together",
    "adaptive": "to an L2 norm that begins at {norm:g} and follows the {target_quantile:g} "
    "quantile, whose count has noise of standard deviation {count_noise:.4g} and is paid for",
}


_RELATION = {
    "add_remove": "one {unit} added or removed, with all that is theirs",
    "zero_out": "what one {unit} sends in every round, or nothing in its place",
}


def nothing_promised() -> dict[str, Any]:
    """The facts of a run without differential privacy."""
    return {"version": VERSION, "mode": "none", "promise": None, "statement": _NONE}


def prose(facts: Mapping[str, Any]) -> str:
    """Markdown: a page that says what privacy.json says, whatever the mode."""
    if facts["promise"] is None:
        return f"# Privacy\n\n{facts['statement']}\n"
    promise, parties = facts["promise"], facts["parties"]
    done = [_party(name, party, promise["delta"]) for name, party in parties.items()]
    parts = [
        "# Privacy",
        _promise(promise, facts["mode"], whose(facts)),
        "## Against whom",
        f"{_first_upper(promise['adversary'])}.",
        "## How",
        *done,
        "## How it adds up",
        f"{_first_upper(facts['composition']['how'])}.",
        "## What it does not cover",
        "\n".join(f"- {item}" for item in facts["not_covered"]),
    ]
    return "\n\n".join(parts) + "\n"


def whose(facts: Mapping[str, Any]) -> str:
    """Whose presence the promise is about, in words: one patient, or one patient of one silo."""
    unit = f"one {facts['promise']['unit']}"
    return f"{unit} of one silo" if facts["composition"]["silos_of_a_unit"] else unit


def _promise(promise: Mapping[str, Any], mode: str, who: str) -> str:
    unit, first = promise["unit"], promise["accountant"]
    return (
        f"This run is differentially private (mode `{mode}`) with **epsilon "
        f"{rounded_up(promise['epsilon'])} at delta {promise['delta']:g}** for the presence "
        f"of {who} (neighbouring data: {_RELATION[promise['relation']].format(unit=unit)}), by "
        f"the {first['name']} accountant ({first['library']}). {_second(promise)}"
    )


def _second(figures: Mapping[str, Any]) -> str:
    second = figures["second_accountant"]
    return (
        f"A second accountant, {second['name']} ({second['library']}), says epsilon "
        f"{rounded_up(second['epsilon'])}."
    )


def _party(name: str, party: Mapping[str, Any], delta: float) -> str:
    clipping = _CLIPPING[party["clipping"]["kind"]].format(**party["clipping"])
    bound = party["contribution"]
    rows = (
        f" (the {bound['unit_reduction']} of the gradients of at most "
        f"{_counted(bound['max_records_per_unit'], 'row')})"
        if bound
        else ""
    )
    noise = _first_upper(party["mechanism"].replace("gaussian", "Gaussian", 1))
    least = "at least " if party["shares"] else ""
    return (
        f"**{name}**: {_whole(party)}. "
        f"{_first_upper(_SAMPLING[party['sampling']].format(**party))}, "
        f"{party['expected_batch']:.4g} expected. What one {party['unit']} adds{rows} is clipped "
        f"{clipping}. {noise} noise of multiplier {rounded_down(party['noise_multiplier'])} is "
        f"counted; the sum itself has {least}{rounded_down(party['sum_noise_multiplier'])} times "
        f"the clipping norm. {_counted(party['steps_released'], 'noisy sum')} "
        f"{_were(party['steps_released'])} released ({party['steps_planned']:,} "
        f"{_were(party['steps_planned'])} planned): epsilon {rounded_up(party['epsilon'])} at "
        f"delta {delta:g} by {party['accountant']['name']} ({party['accountant']['library']}). "
        f"{_second(party)} {_person(party, delta)}{_ledger(party['ledger'])}"
    )


def _whole(party: Mapping[str, Any]) -> str:
    """How many units there are."""
    units = _counted(party["units"], party["unit"])
    return f"one of {units}" if party["person"] else units


def _person(party: Mapping[str, Any], delta: float) -> str:
    """Of a promise to silos: what it is to somebody in their rows."""
    if not party["person"]:
        return ""
    return (
        f"For the presence of one person in its rows, which may change all that it sends, the same "
        f"noise counts half: epsilon {rounded_up(party['person']['epsilon'])} at delta {delta:g}, "
        "which is what its ledger was charged. "
    )


def _ledger(ledger: Mapping[str, Any] | None) -> str:
    if ledger is None:
        return (
            "Earlier and later runs on the same data are not counted: this one was charged to no "
            "ledger."
        )
    budget, after = ledger["budget"], ledger["after"]
    allowed = f", of a budget of {rounded_down(budget['epsilon'])}" if budget else ""
    return (
        f"With all earlier runs on any of these people that the ledger of these data knows, the "
        f"most exposed of them has spent epsilon {rounded_up(after['pld'])} by pld and "
        f"{rounded_up(after['rdp'])} by rdp{allowed} at delta {ledger['delta']:g} (row of hash "
        f"`{ledger['hash']}`). There, equal rows, and ids that came later with the same words, are "
        "taken for one person's."
    )


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]
