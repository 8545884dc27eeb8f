"""How the coordinator is, for machines to ask: `GET /healthz` and `GET /metrics`, on loopback.

Numbers are read when they are asked for, from the runs' folders and Flower; only calls at the door
are counted as they come. Nothing is told that a round's own record leaves out. The page on them:
`docs/monitoring.md`.
"""

import asyncio
import datetime
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import get_args

import prometheus_client
from aiohttp import web
from cryptography import x509
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from fedtune.serving.kept import Kept
from fedtune.serving.local import local_application
from fedtune.serving.served import Served
from fedtune_server.flower_link import Link
from fedtune_server.overview import Overview, Run, State, overview
from fedtune_server.project import Project

_RUNS_SHOWN = 20
_ANSWER_SECONDS = 2.0
_MEGABYTE = 10**6


@dataclass
class Calls:
    """What the door has let in and turned away since the coordinator's start, by silo."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self._bytes = prometheus_client.Counter(
            "fedtune_silo_bytes",
            "Bytes of a silo's calls at the door; up: from the silo",
            ("silo", "direction"),
            registry=self.registry,
        )
        self._refused = prometheus_client.Counter(
            "fedtune_door_refusals",
            "Calls turned away at the door; silo `unknown`: a certificate that is in no roster",
            ("silo",),
            registry=self.registry,
        )

    def seen(self, silo: str, what: str, size: int) -> None:
        """What the door tells of a call: `up`, `down` or `refused`."""
        if what == "refused":
            self._refused.labels(silo).inc()
        else:
            self._bytes.labels(silo, what).inc(size)


@dataclass
class Coordinator:
    """A coordinator at work, and what it stands on."""

    project: Project
    link: Link
    children: Sequence[Kept]
    door: Served
    calls: Calls = field(default_factory=Calls)

    def troubles(self) -> list[str]:
        """Why it can't do its work; empty when all is well."""
        found = [f"{child.name} does not run" for child in self.children if not child.is_up]
        if not found and not self.link.answers():
            found.append("superlink does not answer")
        if not self.door.answers(_ANSWER_SECONDS):
            found.append("the door does not answer")
        if self.certificate_seconds("server") <= 0:
            found.append("the server's certificate has expired or can't be read")
        return [*found, *self._disk_troubles()]

    def certificate_seconds(self, name: str) -> float:
        """Seconds until the certificate expires; 0 where it can't be read."""
        try:
            content = (self.project.certificates / f"{name}.crt").read_bytes()
            end = x509.load_pem_x509_certificate(content).not_valid_after_utc
        except (OSError, ValueError):
            return 0.0
        return (end - datetime.datetime.now(datetime.UTC)).total_seconds()

    def free_bytes(self) -> int:
        """Free disk under the coordinator's folder."""
        return shutil.disk_usage(self.project.folder).free

    def _disk_troubles(self) -> Iterator[str]:
        least = self.project.config.least_free_mb
        if self.free_bytes() < least * _MEGABYTE:
            yield f"less than {least} MB of disk are free"
        try:
            with tempfile.TemporaryFile(dir=self.project.folder / "superlink") as file:
                file.write(b"x")
        except OSError as error:
            yield f"the state's folder can't be written ({error.strerror})"


def monitoring(coordinator: Coordinator) -> web.Application:
    """What answers at `local_port`."""
    prometheus_client.disable_created_metrics()  # a second series for each counter
    registry = coordinator.calls.registry
    registry.register(_Now(coordinator))
    prometheus_client.ProcessCollector(registry=registry)

    async def healthz(_: web.Request) -> web.Response:
        troubles = await asyncio.to_thread(coordinator.troubles)
        told = {"status": "unwell" if troubles else "ok", "reasons": troubles}
        return web.json_response(told, status=503 if troubles else 200)

    async def metrics(_: web.Request) -> web.Response:
        text = await asyncio.to_thread(prometheus_client.generate_latest, registry)
        return web.Response(
            body=text, headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST}
        )

    return local_application({"/healthz": healthz, "/metrics": metrics})


@dataclass(eq=False)
class _Now(Collector):
    """What is read when it is asked for."""

    coordinator: Coordinator

    def describe(self) -> list[Metric]:
        """Nothing before the first question: it would be read for it."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every number, as it is now."""
        found = overview(self.coordinator.project, self.coordinator.link)
        yield from self._process()
        yield from _silos(found)
        yield from _runs(found.runs)

    def _process(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "fedtune_child_up", "Whether a process of Flower's runs", labels=["process"]
        )
        restarts = CounterMetricFamily(
            "fedtune_child_restarts", "How often it was started again", labels=["process"]
        )
        for child in self.coordinator.children:
            up.add_metric([child.name], float(child.is_up))
            restarts.add_metric([child.name], child.restarts)
        left = GaugeMetricFamily(
            "fedtune_certificate_expiry_seconds",
            "Seconds until it expires; 0 or less: expired, or can't be read",
            labels=["certificate"],
        )
        for name in ("server", "authority"):
            left.add_metric([name], self.coordinator.certificate_seconds(name))
        yield from (up, restarts, left)
        free = self.coordinator.free_bytes()
        yield GaugeMetricFamily("fedtune_disk_free_bytes", "Free disk of the folder", value=free)


def _silos(found: Overview) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "fedtune_superlink_up", "Whether Flower told of its nodes", value=float(found.superlink)
    )
    if found.roster_version is not None:
        yield GaugeMetricFamily(
            "fedtune_roster_version", "Version of the roster", value=found.roster_version
        )
    words = Counter(silo.node for silo in found.silos)
    counts = {
        "enrolled": len(found.silos) - words["revoked"],
        "online": words["online"],
        "revoked": words["revoked"],
    }
    silos = GaugeMetricFamily(
        "fedtune_silos", "Silos: enrolled (not revoked), online, revoked", labels=["state"]
    )
    online = GaugeMetricFamily(
        "fedtune_silo_online", "Whether an enrolled silo's node is online", labels=["silo"]
    )
    for state, count in counts.items():
        silos.add_metric([state], count)
    for silo in found.silos:
        if silo.node != "revoked":
            online.add_metric([silo.name], float(silo.node == "online"))
    yield from (silos, online)


def _runs(runs: Sequence[Run]) -> Iterator[Metric]:
    states = Counter(run.status.state for run in runs)
    by_state = GaugeMetricFamily("fedtune_runs", "Runs by their state", labels=["state"])
    for state in get_args(State):
        by_state.add_metric([state], states[state])
    yield by_state
    failures = CounterMetricFamily(
        "fedtune_round_failures", "Replies missing from rounds", labels=["silo", "reason"]
    )
    missing = Counter(
        (gone.silo, gone.reason)
        for run in runs
        for round in run.told
        for gone in round.failures or ()
    )
    for (silo, reason), count in sorted(missing.items()):
        failures.add_metric([silo, reason], count)
    yield failures
    # the newest, and all that are at work: a time series a run for ever would fill Prometheus
    yield from _single([run for n, run in enumerate(runs) if run.at_work or n < _RUNS_SHOWN])


def _single(runs: Sequence[Run]) -> Iterator[Metric]:
    def gauge(name: str, meaning: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"fedtune_run_{name}", meaning, labels=["run"])

    rounds = gauge("rounds", "Rounds that it is to have")
    current = gauge("round", "Its last finished round")
    seconds = gauge("round_seconds", "Seconds of its last finished round, where it may tell them")
    loss = gauge("loss", "Loss of its last finished round, if it has one")
    accuracy = gauge("accuracy", "The coordinator's own score after that round, if it has one")
    size = CounterMetricFamily(
        "fedtune_run_bytes", "Tensor bytes of its rounds", labels=["run", "direction"]
    )
    for run in runs:
        last = run.rounds[-1] if run.rounds else None
        current.add_metric([run.name], run.round)
        for family, value in (
            (rounds, run.status.rounds),
            (seconds, last.seconds if last else None),
            (loss, last.loss if last else None),
            (accuracy, last.metric if last else None),
        ):
            if value is not None:
                family.add_metric([run.name], value)
        for direction in ("up", "down"):
            known = [getattr(round, f"bytes_{direction}") for round in run.rounds]
            if run.rounds and None not in known:
                size.add_metric([run.name, direction], sum(known))
    yield from (rounds, current, seconds, loss, accuracy, size)
