"""A picture of a plan: epsilon over rounds, and what each setting does to it."""

from pathlib import Path
from typing import Any

from fedtune.privacy.outlook import Outlook
from fedtune.privacy.told import rounded_down, rounded_up


def plot_outlook(outlook: Outlook, path: Path) -> None:
    """Write the picture to `path`, in the format that its suffix names."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(picture)
    left, right = picture.subplots(1, 2, width_ratios=[3, 2])
    _over_rounds(left, outlook)
    _knobs(right, outlook)
    plan = outlook.plan
    picture.suptitle(
        f"{plan.units:,} {plan.unit}s, about {plan.expected_batch:.3g} a step, {plan.steps:,} "
        f"steps, noise multiplier {rounded_down(plan.noise_multiplier)}",
        fontsize=11,
    )
    picture.savefig(path, dpi=150)


def _label(outlook: Outlook) -> str:
    return f"epsilon for one {outlook.plan.unit}, at delta {outlook.plan.settings.delta:g}"


def _over_rounds(axes: Any, outlook: Outlook) -> None:
    by_round = outlook.rounds > 1
    x = [point.round if by_round else point.steps for point in outlook.points]
    for place, (figure, style) in enumerate(zip(outlook.figures, ("o-", "s--"), strict=True)):
        y = [point.epsilons[place] for point in outlook.points]
        axes.plot(x, y, style, label=f"{figure.accountant} ({figure.library})")
    axes.set(xlabel="round" if by_round else "step", ylabel=_label(outlook), ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()


def _knobs(axes: Any, outlook: Outlook) -> None:
    now = outlook.figures[0].epsilon
    names = [knob.setting for knob in outlook.knobs]
    for offset, side in ((-0.2, "half"), (0.2, "double")):
        shown = [(k, getattr(knob, side)) for k, knob in enumerate(outlook.knobs)]
        places = [(k + offset, value) for k, value in shown if value is not None]
        bars = axes.barh([k for k, _ in places], [v for _, v in places], 0.36, label=side)
        values = [rounded_up(value) for _, value in places]
        for text in axes.bar_label(bars, values, padding=3, fontsize=8):
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.axvline(now, color="black", lw=1, zorder=0, label=f"as planned: {rounded_up(now)}")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel=f"{_label(outlook)}, by {outlook.figures[0].accountant}")
    axes.legend(fontsize=8)
