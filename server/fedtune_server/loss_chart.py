"""A picture of a run's losses over its rounds, as SVG, drawn by matplotlib."""

import functools
import io
import math
from collections.abc import Sequence
from typing import Any

from fedtune_server.overview import Round

_COLOURS = {
    "light": {"ink": "#475467", "grid": "#e4e7ec", "line": "#1f5fd0", "missing": "#b42318"},
    "dark": {"ink": "#a9b4c4", "grid": "#2b3442", "line": "#7fb0ff", "missing": "#ff9b8f"},
}
THEMES = tuple(_COLOURS)
SIZES = {"wide": (9.6, 3.2), "narrow": (4.6, 3.2)}
_MARKED_ROUNDS = 60


def has_losses(rounds: Sequence[Round]) -> bool:
    """Whether there is anything to draw."""
    return any(_known(round.loss) for round in rounds)


@functools.lru_cache(maxsize=32)
def draw(rounds: tuple[Round, ...], theme: str, size: str) -> bytes:
    """The losses, and the coordinator's own scores where it has any, below each other."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    colours, (width, height) = _COLOURS[theme], SIZES[size]
    lines = {"loss": [(r.round, r.loss) for r in rounds if _known(r.loss)]}
    if scores := [(r.round, r.metric) for r in rounds if _known(r.metric)]:
        lines["accuracy"] = scores
    picture = Figure(figsize=(width, height * len(lines)), layout="constrained", facecolor="none")
    plots = picture.subplots(len(lines), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, points) in zip(plots, lines.items(), strict=True):
        _plot(axes, name, points, colours)
    _mark_missing(plots[0], rounds, colours["missing"])
    plots[-1].set_xlabel("round", color=colours["ink"])
    out = io.BytesIO()
    FigureCanvasSVG(picture).print_svg(out, metadata={"Date": None})
    return out.getvalue()


def _plot(axes: Any, name: str, points: Sequence[Any], colours: dict[str, str]) -> None:
    from matplotlib.ticker import MaxNLocator

    x, y = [point[0] for point in points], [point[1] for point in points]
    marker = "o" if len(points) <= _MARKED_ROUNDS else ""
    axes.plot(x, y, color=colours["line"], lw=2, marker=marker, ms=4.5, label=name)
    axes.annotate(
        f"{y[-1]:.4g}",
        (x[-1], y[-1]),
        xytext=(0, 8),
        textcoords="offset points",
        ha="center",
        color=colours["line"],
        weight="bold",
    )
    axes.margins(y=0.2)
    axes.set_facecolor("none")
    axes.set_ylabel(name, color=colours["ink"])
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, min_n_ticks=1))
    axes.tick_params(colors=colours["ink"], length=0)
    axes.grid(axis="y", color=colours["grid"])
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=colours["grid"])


def _mark_missing(axes: Any, rounds: Sequence[Round], colour: str) -> None:
    short = [round.round for round in rounds if round.failures]
    if not short:
        return
    floor = axes.get_xaxis_transform()  # x by round, y by the height of the plot
    axes.scatter(
        *(short, [0.03] * len(short)),
        transform=floor,
        marker="x",
        color=colour,
        s=28,
        label="silos missing",
        clip_on=False,
    )
    axes.legend(frameon=False, labelcolor="linecolor", fontsize=9)


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
