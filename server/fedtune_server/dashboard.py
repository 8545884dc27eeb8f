"""`fedtune server dashboard`: a page for the coordinator's operator, on loopback, to look at.

aiohttp serves it, Jinja makes it with escaping on, matplotlib draws it: all three are here for
other reasons already, and the page needs no script and nothing from elsewhere, which frameworks
for dashboards bring. It reads the folder, asks Flower, and asks the coordinator's own health
endpoint; it writes nothing, and works where no coordinator runs.
"""

import asyncio
import datetime
import importlib.resources
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlencode

import httpx
import jinja2
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, ValidationError
from rich.filesize import decimal

from fedtune.errors import InputError
from fedtune.serving.local import HOST, local_application
from fedtune_server.loss_chart import SIZES, THEMES, draw, has_losses
from fedtune_server.overview import Missing, Overview, Refusal, Run, overview, refusals
from fedtune_server.project import Project
from fedtune_server.promise import promise
from fedtune_server.run_start import link_of

_ANSWER_SECONDS = 8.0
_LARGEST_ANSWER_BYTES = 2**22
_AT_WORK_SECONDS, _AT_REST_SECONDS = 5, 30
_ROWS_SHOWN = 50


class _Told(BaseModel):
    """What the health endpoint says."""

    status: Literal["ok", "unwell"]
    reasons: list[str]


@dataclass(frozen=True)
class Wellbeing:
    """How the coordinator is; `word` is `ok`, `unwell` or `silent` (nothing answers)."""

    word: str
    reasons: Sequence[str] = ()
    traffic: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By silo and `up`, `down` or `refused`, since the coordinator's start."""


def dashboard(project: Project) -> web.Application:
    """What answers."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fedtune_server", "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": _bytes, "number": _number, "time": _time}
    template = environment.get_template("dashboard.html")
    pages = importlib.resources.files("fedtune_server") / "pages"
    style, drawn = ((pages / name).read_bytes() for name in ("dashboard.css", "icon.svg"))

    async def page(request: web.Request) -> web.Response:
        how, found = await asyncio.gather(_wellbeing(project), asyncio.to_thread(_look, project))
        shown = _facts(project, how, found, request.query)
        text = await asyncio.to_thread(template.render, shown)
        return web.Response(text=text, content_type="text/html")

    async def chart(request: web.Request) -> web.Response:
        found = await asyncio.to_thread(overview, project, None)
        run = next((r for r in found.runs if r.name == request.query.get("run")), None)
        theme, size = request.query.get("theme", "light"), request.query.get("size", "wide")
        if run is None or not has_losses(run.rounds) or theme not in THEMES or size not in SIZES:
            raise web.HTTPNotFound
        picture = await asyncio.to_thread(draw, run.rounds, theme, size)
        return web.Response(body=picture, content_type="image/svg+xml")

    async def css(_: web.Request) -> web.Response:
        return web.Response(body=style, content_type="text/css", charset="utf-8")

    async def icon(_: web.Request) -> web.Response:
        return web.Response(body=drawn, content_type="image/svg+xml")

    return local_application(
        {"/": page, "/chart.svg": chart, "/dashboard.css": css, "/icon.svg": icon}
    )


def _look(project: Project) -> tuple[Overview, list[Refusal]]:
    try:
        link = link_of(project)
    except InputError:
        link = None
    return overview(project, link), refusals(project)


async def _wellbeing(project: Project) -> Wellbeing:
    """What the coordinator's own endpoints say."""
    url = f"http://{HOST}:{project.config.local_port}"
    try:
        async with httpx.AsyncClient(timeout=_ANSWER_SECONDS, trust_env=False) as client:
            health, metrics = await asyncio.gather(
                client.get(f"{url}/healthz"), client.get(f"{url}/metrics")
            )
        told = _Told.model_validate_json(health.content[:_LARGEST_ANSWER_BYTES])
        return Wellbeing(told.status, told.reasons, _traffic(metrics.text))
    except (httpx.HTTPError, ValidationError, ValueError):
        return Wellbeing("silent")


def _traffic(metrics: str) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(metrics[:_LARGEST_ANSWER_BYTES]):
        for sample in family.samples:
            if sample.name == "fedtune_silo_bytes_total":
                found[sample.labels["silo"], sample.labels["direction"]] += int(sample.value)
            elif sample.name == "fedtune_door_refusals_total":
                found[sample.labels["silo"], "refused"] += int(sample.value)
    return found


def _facts(
    project: Project, how: Wellbeing, found: tuple[Overview, list[Refusal]], query: Any
) -> dict[str, Any]:
    """All that the page shows."""
    seen, turned_away = found
    chosen = next((run for run in seen.runs if run.name == query.get("run")), None)
    run = chosen or next(iter(seen.runs), None)
    rounds = run.rounds if run else ()
    paused = query.get("refresh") == "off"
    at_work = any(run.at_work for run in seen.runs)
    missing = _missing(seen.runs)
    return {
        "seen": seen,
        "folder": project.folder.absolute(),
        "how": how,
        "run": run,
        "promise": promise(run) if run else None,
        "chart": has_losses(rounds),
        "chart_of": lambda theme, size: "chart.svg?" + _query(run, theme=theme, size=size),
        "answered": Counter(silo for told in rounds for silo in told.silos or ()),
        "trouble": _last_trouble(run),
        "missing": missing[:_ROWS_SHOWN],
        "missing_more": max(0, len(missing) - _ROWS_SHOWN),
        "turned_away": turned_away[:_ROWS_SHOWN],
        "turned_away_more": max(0, len(turned_away) - _ROWS_SHOWN),
        "rows": _ROWS_SHOWN,
        "now": datetime.datetime.now(datetime.UTC),
        "refresh": None if paused else _AT_WORK_SECONDS if at_work else _AT_REST_SECONDS,
        "link_to": lambda run: "?" + _query(run, **({"refresh": "off"} if paused else {})),
        "toggle": "?" + _query(chosen, **({} if paused else {"refresh": "off"})),
    }


def _query(run: Run | None, **more: str) -> str:
    return urlencode({**({"run": run.name} if run else {}), **more})


def _missing(runs: Sequence[Run]) -> list[tuple[Run, int, Missing]]:
    """Silos that were missing from rounds: newest run and round first."""
    return [
        (run, told.round, gone)
        for run in runs
        for told in reversed(run.told)
        for gone in told.failures or ()
    ]


def _last_trouble(run: Run | None) -> dict[str, tuple[int, Missing]]:
    """Why each silo was last missing from the run."""
    rounds = run.told if run else ()
    return {gone.silo: (told.round, gone) for told in rounds for gone in told.failures or ()}


def _bytes(value: int | None) -> str:
    return "-" if value is None else decimal(value)


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _time(value: datetime.datetime | None) -> str:
    return "-" if value is None else f"{value.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
