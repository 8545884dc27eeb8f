"""A privacy statement as a page to read, from the facts that privacy.json holds."""

from collections.abc import Mapping
from typing import Any

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


def prose(facts: Mapping[str, Any]) -> str:
    """Markdown: a page that says what privacy.json says, whatever the mode."""
    if facts["promise"] is None:
        return f"# Privacy\n\n{facts['statement']}\n"
    promise, parties = facts["promise"], facts["parties"]
    done = [_party(name, party, promise["delta"]) for name, party in parties.items()]
    parts = [
        "# Privacy",
        _promise(promise, facts["mode"]),
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


def _promise(promise: Mapping[str, Any], mode: str) -> str:
    unit, first = promise["unit"], promise["accountant"]
    return (
        f"This run is differentially private (mode `{mode}`) with **epsilon "
        f"{promise['epsilon']:.4g} at delta {promise['delta']:g}** for the presence of one {unit} "
        f"(neighbouring data: one {unit} added or removed, with all that is theirs), by the "
        f"{first['name']} accountant ({first['library']}). {_second(promise)}"
    )


def _second(figures: Mapping[str, Any]) -> str:
    second = figures["second_accountant"]
    return (
        f"A second accountant, {second['name']} ({second['library']}), says epsilon "
        f"{second['epsilon']:.4g}."
    )


def _party(name: str, party: Mapping[str, Any], delta: float) -> str:
    clipping = _CLIPPING[party["clipping"]["kind"]].format(**party["clipping"])
    bound = party["contribution"]
    rows = (
        f" (the {bound['unit_reduction']} of the gradients of at most "
        f"{bound['max_records_per_unit']} rows)"
        if bound
        else ""
    )
    noise = party["mechanism"].replace("gaussian", "Gaussian", 1)
    return (
        f"**{name}**: {party['units']:,} {party['unit']}s. "
        f"{_first_upper(_SAMPLING[party['sampling']].format(**party))}, "
        f"{party['expected_batch']:.4g} expected. What one {party['unit']} adds{rows} is clipped "
        f"{clipping}. {noise} noise of multiplier {party['noise_multiplier']:.4g} is counted; the "
        f"sum itself has {party['sum_noise_multiplier']:.4g} times the clipping norm. "
        f"{party['steps_released']:,} noisy sums were released ({party['steps_planned']:,} were "
        f"planned): epsilon {party['epsilon']:.4g} at delta {delta:g} by "
        f"{party['accountant']['name']} ({party['accountant']['library']}). {_second(party)} "
        f"{_ledger(party['ledger'], party['unit'])}"
    )


def _ledger(ledger: Mapping[str, Any] | None, unit: str) -> str:
    if ledger is None:
        return "Earlier and later runs on the same data are not counted: there was no ledger."
    budget, at = ledger["budget"], f"at delta {ledger['delta']:g}"
    allowed = f"of a budget of {budget['epsilon']:g} " if budget else "(no budget was set) "
    met = ", ".join(ledger["earlier_runs"]) or "none"
    return (
        f"Earlier runs on any of these people: {met}. The most exposed of them had spent epsilon "
        f"{ledger['before']['pld']:.4g} by pld and {ledger['before']['rdp']:.4g} by rdp, and with "
        f"this run {ledger['after']['pld']:.4g} by pld and {ledger['after']['rdp']:.4g} by rdp "
        f"{allowed}{at} (row {ledger['row']} of the ledger, hash `{ledger['hash']}`)."
    )


def _first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]
