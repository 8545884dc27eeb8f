"""What the coordinator can say of a run's privacy: the promise in its settings, and who is charged.

Spending is counted where the rows are. Nothing of a silo's ledger comes here, so this is what a run
was set to promise, never what some patient has spent.
"""

from dataclasses import dataclass

from fedtune.config.privacy import PrivacyConfig
from fedtune_server.overview import Run


@dataclass(frozen=True)
class Promise:
    """A sentence for all, and lines of name and value."""

    sentence: str
    lines: tuple[tuple[str, str], ...] = ()


_NONE = Promise(
    "No differential privacy: this run promises nothing to single people. Whoever gets the adapter "
    "or a silo's deltas may learn of the rows behind them."
)
_UNKNOWN = Promise("The run's settings can't be read, so nothing can be said of its privacy.")


def promise(run: Run) -> Promise:
    """What may be said of the run's privacy."""
    if run.config is None:
        return _UNKNOWN
    settings = run.config.privacy
    if settings.mode == "none":
        return _NONE
    trained = sorted({silo for told in run.rounds for silo in told.silos or ()})
    lines = (
        ("Mode", settings.mode),
        ("Protected", _unit(settings)),
        ("Epsilon", _epsilon(settings, run.config.federation.rounds)),
        ("Delta", f"{settings.delta:g}"),
        ("Accountant", settings.accountant),
        ("Rounds done", f"{run.round} of {run.config.federation.rounds}"),
        ("Charged so far, at least", ", ".join(trained) or "nobody that is known here"),
    )
    return Promise(_SENTENCES[settings.mode], lines)


_SENTENCES = {
    "local": "Charged in each silo's own ledger, by the silo: the whole run at once, before its "
    "first step there. The coordinator knows the run's promise, below. It can't check it from "
    "outside, and isn't told what any ledger holds: what was done on its rows and what a patient "
    "has spent over all runs only the silo can say (its statement, and fedtune budget show).",
    "distributed": "Each silo adds a share of the noise and charges its own ledger; the sum alone, "
    "which is opened of no fewer silos than the settings say, has all of it. So the promise holds "
    "against the coordinator too, and against silos that help it, up to the number in the "
    "settings. None of the ledgers is told here.",
    "central": "The coordinator adds the noise, so the promise holds against who gets the adapter "
    "and not against the coordinator. It is for whole silos: no patient's ledger is charged.",
}


def _unit(settings: PrivacyConfig) -> str:
    if settings.mode == "central" or settings.unit == "silo":
        return "one silo"
    if settings.unit is None:
        return "one patient of a silo, or one row where its data name no patients"
    return {"patient": "one patient of a silo", "record": "one row of a silo"}[settings.unit]


def _epsilon(settings: PrivacyConfig, rounds: int) -> str:
    if settings.target_epsilon is not None:
        return f"at most {settings.target_epsilon:g} for all {rounds} rounds together"
    return (
        f"not told here: noise multiplier {settings.noise_multiplier:g}, from which each silo "
        "counts its own"
    )
