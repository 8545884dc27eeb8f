"""privacy.json and privacy.md of a run: what is promised to whom, how that was counted, what isn't.

privacy.json has `version`, `mode` and `promise`, null for mode `none` (then `statement` says so).
Else `promise` has `epsilon`, `delta`, `unit`, `relation`, `adversary`, `accountant` and
`second_accountant` (each with `name`, `epsilon` and `library` with its version); `parties` has for
each silo (or `run` for a central one) what was done on its data: `units`, `sampling`,
`sample_rate`, `steps_planned`, `steps_released`, `mechanism`, `noise_multiplier`,
`sum_noise_multiplier`, `clipping`, `events`, `shares` (of noise that silos add together: of how
many) and `person` (where silos are the units: the figures for one person of theirs), its own two
figures, and under `ledger` what all runs on the same people spent together, and the hash of the
charge's row there; `composition` says how parties and rounds add up, and in how many silos one unit
may be (`silos_of_a_unit`); `not_covered` what the promise leaves out; `held_out` is the setting.
privacy.md tells the same and no more: it is made from privacy.json.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedtune.atomic import write_text
from fedtune.config.privacy import PrivacyConfig
from fedtune.models.promise import STATEMENT as STATEMENT
from fedtune.privacy.accounting import Figure, figures
from fedtune.privacy.done import Done
from fedtune.privacy.events import GaussianEvent
from fedtune.privacy.ledger import Charge
from fedtune.privacy.plan import ExecutionPlan, people_of
from fedtune.reports.privacy_prose import PROSE, VERSION, nothing_promised, prose

_ADVERSARY = {
    "local": "everybody outside the place whose data these are, the coordinator and other silos "
    "included, who may see every update that left it and the final model, and may know everything "
    "about all other units",
    "distributed": "everybody outside the place whose data these are, who may see every sum that "
    "was opened and the final model, and may know everything about all other units: the "
    "coordinator, and with it up to {colluders} silos that tell it all they know, as long as the "
    "others of each sum, of which there are at least {honest} with this one, add their noise and "
    "keep it to themselves",
    "central": "whoever gets the model, after any round or at the end, and the other silos, who "
    "may know everything about all other silos; the coordinator is trusted: it sees each silo's "
    "update",
}
_NOT_COVERED = (
    "choices made by looking at these data outside the ledger: hyperparameter search, selection of "
    "columns or rows, runs by other programs or under another ledger",
    "a tokenizer, base model or starting adapter that was itself made from private text: they are "
    "taken as public (fedtune fits no tokenizer)",
    "the number of units, the expected size of a batch and the settings, which are taken as public",
    "whether a run is refused because a silo or a held-out part would be empty. Who is held out, "
    "and in which silo of a simulation somebody is, hangs on nobody else: a hash of the seed and "
    "of one's own id (of a row's own words, where no column names ids) decides it",
    "one person under two ids: ids can't tell. Under k ids in one silo they move its sums by k "
    "clipping norms, and epsilon grows faster than k times (the ledger counts them as one if an "
    "earlier run had their words under one id)",
    "what all runs in the ledger cost together: that figure is exact and tells whether somebody in "
    "these data was in earlier runs",
    "side channels: the time a step or a round takes (reports leave it out, but who watches a run "
    "can see it), memory, network traffic and failures",
    "files that stay where the data are: the cache, checkpoints, partition.json, charged.json, "
    "manifest.json and logs",
)
_REAL = (
    "floating-point arithmetic: noise is drawn in double precision from a ChaCha20 stream keyed by "
    "the operating system and the noised sum is rounded to a grid, but the accounting is that of "
    "real numbers"
)
_MODE = {
    "local": (_REAL,),
    "distributed": (
        "floating-point arithmetic before a vector is rounded to whole numbers, for which a "
        "thousandth of the clipping norm is counted; rounding, noise and sums are of whole numbers",
        "what secure aggregation assumes: docs/secure-aggregation.md",
        "who took part in a round, which is known to the coordinator and to all silos of it",
    ),
    "central": (
        _REAL,
        "silos that a simulation cuts from one data set (`federation.partition.by` other than "
        "`column`): with one silo more, all would be cut anew",
    ),
}
_HELD_OUT = {
    "public": "losses and metrics on held-out rows, which were computed and shown exactly: the "
    "settings say that these rows are nobody's secret (`held_out: public`)",
    "refuse": "nothing was computed on held-out rows (`held_out: refuse`); whoever scores the "
    "model on private rows later publishes something that is not counted here",
}


def write_statement(
    folder: Path,
    settings: PrivacyConfig,
    done: Mapping[str, Done],
    *,
    rounds: int | None = None,
) -> dict[str, Any]:
    """Write privacy.json and privacy.md into `folder` and give the former's content.

    `done` is what each silo did in `local` mode; `{"run": ...}` for `train` and for `central`.
    `rounds` is None outside a federation.
    """
    facts = statement(settings, done, rounds=rounds)
    write_text(folder / STATEMENT, json.dumps(facts, indent=2) + "\n")
    write_text(folder / PROSE, prose(facts))
    return facts


def statement(
    settings: PrivacyConfig,
    done: Mapping[str, Done],
    *,
    rounds: int | None = None,
) -> dict[str, Any]:
    """What privacy.json holds. Raises ValueError on a private mode of which nothing was done."""
    if settings.mode == "none":
        return nothing_promised()
    if not done:
        raise ValueError(f"nothing was done under mode {settings.mode}")
    if any(one.plan.settings != settings for one in done.values()):
        raise ValueError("a plan was made from other settings than the run's")
    parties = {name: _party(one) for name, one in done.items()}
    plan = next(iter(done.values())).plan
    return {
        "version": VERSION,
        "mode": settings.mode,
        "promise": {
            **_promised(parties),
            "delta": settings.delta,
            "unit": plan.unit,
            "relation": plan.relation,
            "adversary": _ADVERSARY[settings.mode].format_map(_facts_of(plan)),
        },
        "parties": parties,
        "composition": _composition(settings, len(done), rounds),
        "held_out": settings.held_out,
        "not_covered": [*_NOT_COVERED, *_MODE[settings.mode], _HELD_OUT[settings.held_out]],
    }


def _promised(parties: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The run's epsilon: the largest over parties, since a unit is in one of them."""
    most = max(parties.values(), key=lambda party: float(party["epsilon"]))
    return {name: most[name] for name in ("epsilon", "accountant", "second_accountant")}


def _figures(settings: PrivacyConfig, events: Sequence[GaussianEvent]) -> dict[str, Any]:
    first, second = figures(events, settings.delta, settings.accountant)
    return {
        "epsilon": first.epsilon,
        "accountant": _accountant(first),
        "second_accountant": _accountant(second),
    }


def _accountant(figure: Figure) -> dict[str, Any]:
    return {"name": figure.accountant, "epsilon": figure.epsilon, "library": figure.library}


def _party(done: Done) -> dict[str, Any]:
    plan, settings = done.plan, done.plan.settings
    bounded = {
        "max_records_per_unit": settings.max_records_per_unit,
        "unit_reduction": settings.unit_reduction,
    }
    return {
        **_figures(settings, done.events),
        "unit": plan.unit,
        "units": plan.units,
        "sampling": plan.sampling,
        "sample_rate": plan.sample_rate,
        "expected_batch": plan.expected_batch,
        "steps_planned": plan.steps,
        "steps_released": done.steps,
        "mechanism": _mechanism(plan),
        "noise_multiplier": plan.noise_multiplier,
        "sum_noise_multiplier": plan.sum_noise_multiplier,
        "correlation": plan.correlation.to_json() if plan.correlation else None,
        "person": _person(plan, done.steps),
        "shares": dataclasses.asdict(plan.shares) if plan.shares else None,
        "clipping": _clipping(plan),
        "contribution": bounded if plan.unit == "patient" else None,
        "events": [event.to_json() for event in done.events],
        "ledger": _ledger(done.charge),
    }


def _person(plan: ExecutionPlan, steps: int) -> dict[str, Any] | None:
    """Of a promise to silos that add noise themselves: the figures for one of their people."""
    if plan.unit != "silo" or plan.shares is None:
        return None
    return _figures(plan.settings, [people_of(plan, "record", 1).event(steps)])


def _facts_of(plan: ExecutionPlan) -> dict[str, int]:
    shares = plan.shares
    return {"colluders": shares.colluders, "honest": shares.honest} if shares else {}


def _mechanism(plan: ExecutionPlan) -> str:
    if plan.shares is not None:
        return "discrete gaussian in shares"
    return "gaussian" if plan.correlation is None else f"gaussian {plan.settings.server_noise}"


def _clipping(plan: ExecutionPlan) -> dict[str, Any]:
    settings = plan.settings
    found = {"kind": settings.clipping, "norm": settings.clipping_norm}
    if settings.clipping == "adaptive":
        found |= {
            "target_quantile": settings.target_quantile,
            "rate": settings.clipping_rate,
            "count_noise": plan.count_noise,
        }
    return found


def _ledger(charge: Charge | None) -> dict[str, Any] | None:
    """What the ledger's owner and a reader need: where it is told, and the composed figures.

    Earlier runs by name, and what each cost, are the silo's own: `fedtune budget show` tells them.
    """
    if charge is None:
        return None
    whole = dataclasses.asdict(charge)
    return {name: whole[name] for name in ("hash", "after", "delta", "budget")}


def _composition(settings: PrivacyConfig, parties: int, rounds: int | None) -> dict[str, Any]:
    told = "all noisy sums of the run are composed"
    if rounds is not None:
        told += f", over all of its {rounds} rounds"
    in_silos = settings.mode in ("local", "distributed") and rounds is not None
    shared = settings.mode == "distributed"
    in_silos = in_silos and settings.unit != "silo"
    if shared:
        told += (
            "; all silos are in the same sums. Somebody who has rows in k of them, under several "
            "ids or in silos that have a ledger each, moves a sum k times as far: the noise "
            "multiplier counts as its k-th part"
        )
    if in_silos and parties > 1 and not shared:
        told += (
            "; each unit is in one silo (a run in which two silos have one id is refused), so the "
            "run's epsilon is the largest of its silos'. For somebody who is in several under "
            "several ids, epsilons and deltas of these silos add up"
        )
    return {"rounds": rounds, "silos_of_a_unit": 1 if in_silos else None, "how": told}
