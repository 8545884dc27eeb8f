"""Private steps are charged to the machine's ledger before the first of them is taken."""

from fedtune.config.schema import RunConfig
from fedtune.data.examples import ExampleSet
from fedtune.privacy.dp_sgd import PrivateSteps
from fedtune.privacy.fingerprints import fingerprints
from fedtune.privacy.ledger import Charge, Ledger, ledger_path
from fedtune.training.private import unit_of


def charge_run(
    config: RunConfig,
    rows: ExampleSet,
    private: PrivateSteps,
    *,
    run: str,
    purpose: str,
    again: int | None = None,
) -> Charge | None:
    """Charge the whole plan to everybody in `rows`; `run` is told by its hash.

    A run that goes on was charged when it began: then only `again` steps are, those that an
    interrupted round may have released before (0: none). A ledger that doesn't know the run charges
    it whole. Raises InputError, with nothing charged, when somebody's budget doesn't allow it.
    """
    unit = unit_of(config)
    ledger = Ledger.open(ledger_path(config.privacy.ledger))
    events = [private.plan.event()]
    if again is not None and _charged(ledger, run, purpose):
        if not again:
            return None
        events = [private.plan.event(again)]
    return ledger.charge(
        run=run,
        purpose=purpose,
        unit=unit,
        people=fingerprints(rows, ledger.key, unit),
        events=events,
        plan=private.plan.to_json(),
        delta=config.privacy.delta,
    )


def _charged(ledger: Ledger, run: str, purpose: str) -> bool:
    return any(row.body["purpose"] == purpose for row in ledger.charges(run))
