"""`fedtune privacy`: what differential privacy a run would have, before anything is trained."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedtune.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fedtune.privacy.outlook import Outlook
    from fedtune.privacy.plan import ExecutionPlan

app = typer.Typer(help="Plan a run's differential privacy.", no_args_is_help=True)

_MOST_STEPS = 50_000_000


@app.callback()
def _group() -> None:
    """Keep `plan` a subcommand while it is the only one."""


@app.command()
def plan(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG.yaml] [section.key=value]",
            help="A config file's privacy, batch and steps, and overrides such as "
            "privacy.clipping=adaptive.",
        ),
    ] = None,
    units: Annotated[
        int | None, typer.Option(min=1, help="Patients (or records, or silos) in the data.")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="Rows, if units aren't known: over records a unit.")
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(help="patient (where left out), record or silo.", show_default=False),
    ] = None,
    records_per_unit: Annotated[
        int, typer.Option(min=1, max=64, help="Most records of a patient.")
    ] = 1,
    batch: Annotated[int | None, typer.Option(min=1, help="Units a step, on average.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=_MOST_STEPS, help="Steps in all, in one round.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds.")] = None,
    local_steps: Annotated[int | None, typer.Option(min=1, help="Steps a round.")] = None,
    target_epsilon: Annotated[
        float | None, typer.Option(help="Solve for the noise that keeps to it.")
    ] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(max=1e6, help="Noise over the clipping norm.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="Below 1 / units.")] = None,
    accountant: Annotated[str | None, typer.Option(help="pld, prv or rdp.")] = None,
    clipping: Annotated[str | None, typer.Option(help="flat, per_layer or adaptive.")] = None,
    sampling: Annotated[str | None, typer.Option(help="poisson, shuffle or full.")] = None,
    weights: Annotated[
        int | None, typer.Option(min=1, help="Weights that are trained: tells signal to noise.")
    ] = None,
    select_from: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="Runs of which the best is published.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what epsilon and noise settings give, over rounds, and how each setting moves them.

    Example: fedtune privacy plan --units 5000 --batch 100 --rounds 20 --local-steps 25
    --target-epsilon 3
    """
    from fedtune.privacy.outlook import outlook

    settings = {
        "training.batch_size": batch,
        "training.max_steps": steps or local_steps,
        "federation.rounds": 1 if steps else rounds,
        "privacy.unit": unit,
        "privacy.target_epsilon": target_epsilon,
        "privacy.noise_multiplier": noise_multiplier,
        "privacy.delta": delta,
        "privacy.accountant": accountant,
        "privacy.clipping": clipping,
        "privacy.sampling": sampling,
    }
    if steps and (rounds or local_steps):
        raise InputError(
            "can't be given with --rounds or --local-steps",
            where="--steps",
            mend="say --steps for all, or --rounds and --local-steps",
        )
    planned, in_rounds = _plan(words or [], settings, units, rows, records_per_unit)
    found = outlook(
        planned, in_rounds, weights=weights, records=records_per_unit, select_from=select_from
    )
    if plot is not None:
        _draw(found, plot)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        _tell(found)


def _plan(
    words: list[str],
    settings: Mapping[str, object],
    units: int | None,
    rows: int | None,
    records: int,
) -> "tuple[ExecutionPlan, int]":
    """The plan of config file, overrides and options, and the rounds that share its steps."""
    from fedtune.config.load import load_config
    from fedtune.privacy.events import MAX_STEPS
    from fedtune.privacy.plan import plan_rounds, plan_shared, plan_steps
    from fedtune.training.sampling import steps_for

    path = Path(words[0]) if words and "=" not in words[0] else None
    overrides = words[1:] if path else ["privacy.mode=local", *words]
    overrides += [f"{name}={value}" for name, value in settings.items() if value is not None]
    goals = ("privacy.target_epsilon", "privacy.noise_multiplier")
    if path and sum(settings[goal] is not None for goal in goals) == 1:  # in place of the file's
        overrides += [f"{goal}=null" for goal in goals if settings[goal] is None]
    config = load_config(path, overrides)
    if config.privacy.mode == "none":
        raise InputError(
            "is `none`", where="privacy.mode", mend="set it to local, distributed or central"
        )
    told = [word.split("=")[0] for word in overrides]
    if not path and not {"training.max_steps", "training.num_epochs"} & set(told):
        raise InputError("is missing", where="--steps", mend="or say --rounds and --local-steps")
    unit = config.privacy.unit or "patient"
    count = units or ((rows or 0) // (records if unit == "patient" else 1))
    if not count:
        raise InputError("is missing", where="--units", mend="or say --rows, of --records-per-unit")
    rounds = config.federation.rounds if path or settings["federation.rounds"] else 1
    if config.privacy.mode == "central":
        return plan_rounds(config.privacy, config.federation, count), rounds
    if config.privacy.mode == "distributed":
        return plan_shared(config, config.privacy.unit or "patient", count), rounds
    steps = steps_for(config.training, count) * rounds
    if steps > MAX_STEPS:
        raise InputError(f"are {steps:,} in all", where="steps", expected=f"up to {MAX_STEPS:,}")
    return plan_steps(config.privacy, unit, count, config.training.batch_size, steps), rounds


def _draw(found: "Outlook", path: Path) -> None:
    from fedtune.reports.privacy_plot import plot_outlook

    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise InputError(f"is {path}", where="--plot", expected="a file .png, .pdf or .svg")
    try:
        plot_outlook(found, path)
    except OSError as fault:
        raise InputError(f"can't write {path}: {fault.strerror}", where="--plot") from fault


def _tell(found: "Outlook") -> None:
    from rich.console import Console

    from fedtune.privacy.told import rounded_down, rounded_up

    console, plan = Console(highlight=False, soft_wrap=True), found.plan
    settings, (first, second) = plan.settings, found.figures
    made = "noise solved for" if settings.target_epsilon else "noise as given"
    console.print(
        f"epsilon {rounded_up(first.epsilon)} by {first.accountant} ({first.library}), "
        f"{rounded_up(second.epsilon)} by {second.accountant} ({second.library})\n"
        f"  at delta {settings.delta:g}, for the presence or absence of one {plan.unit}, "
        f"against {found.adversary}\n"
        f"  {plan.units:,} {plan.unit}s, about {plan.expected_batch:.4g} a step "
        f"({'no' if plan.correlation else plan.sampling} sampling, rate "
        f"{plan.sample_rate:.4g}), {plan.steps:,} steps in {found.rounds:,} rounds\n"
        f"  noise multiplier {rounded_down(plan.noise_multiplier)} ({made})"
        + (
            f"; {rounded_down(plan.sum_noise_multiplier)} on sums and "
            f"{rounded_down(plan.count_noise)} on counts"
            if settings.clipping == "adaptive"
            else ""
        )
    )
    console.print(_over_rounds(found))
    console.print(_knobs(found))
    _tell_rest(found, console)


def _over_rounds(found: "Outlook") -> "Table":
    from rich.table import Table

    from fedtune.privacy.told import rounded_up

    table = Table("round", "steps", title="epsilon over rounds", title_justify="left")
    for figure in found.figures:
        table.add_column(figure.accountant, justify="right")
    for point in found.points:
        values = map(rounded_up, point.epsilons)
        table.add_row(f"{point.round:,}", f"{point.steps:,}", *values)
    return table


def _knobs(found: "Outlook") -> "Table":
    from rich.table import Table

    from fedtune.privacy.told import rounded_up

    table = Table("setting", title="epsilon if one setting were", title_justify="left")
    for head in ("half", "as planned", "double"):
        table.add_column(head, justify="right")
    for knob in found.knobs:
        sides = (knob.half, found.figures[0].epsilon, knob.double)
        table.add_row(knob.setting, *("-" if v is None else rounded_up(v) for v in sides))
    return table


def _tell_rest(found: "Outlook", console: "Console") -> None:
    from fedtune.privacy.told import rounded_up

    if found.signal_to_noise is not None:
        console.print(
            f"signal to noise of a step: at most {found.signal_to_noise:.3g}, if all gradients "
            f"were clipped and alike ({found.weights:,} weights)"
        )
    else:
        console.print("signal to noise of a step: say --weights, the number that is trained")
    if found.person_epsilon is not None:
        console.print(
            f"one person in a silo's rows, which may change all that it sends: epsilon "
            f"{rounded_up(found.person_epsilon)}"
        )
    if found.patient_epsilon is not None:
        console.print(
            f"a patient with {found.records} records: epsilon "
            f"{rounded_up(found.patient_epsilon)} at most"
        )
    if found.selection:
        console.print(
            f"the best of about {found.selection.runs} runs (a Poisson number, drawn before): "
            f"epsilon {rounded_up(found.selection.best_of_poisson)} by rdp; of exactly "
            f"{found.selection.runs} runs: {rounded_up(found.selection.composed)} by "
            f"{found.figures[0].accountant}"
        )
    else:
        console.print(
            "not counted: other runs on the same data, and choosing among them (--select-from)"
        )
    for warning in found.warnings:
        console.print(f"warning: {warning}")
