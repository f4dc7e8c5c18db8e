"""`/metrics`: what an operator watches, in Prometheus' text form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from prometheus_client import CollectorRegistry, Counter, Histogram, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lplgrad_backend.service import Service
from lplgrad_backend.status import ProjectStatus, now
from lplgrad_backend.store import version_number

Sample: TypeAlias = tuple[str, tuple[str, ...], float]  # metric, values of its further labels, value
LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 10.0, 30.0, 100.0)


class Metrics:
    """Counts of this process's requests, and gauges read from disk at each scrape."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        self._seconds = Histogram(
            "lplgrad_request_seconds",
            "Time to answer, by endpoint.",
            ["endpoint"],
            buckets=LATENCY_BUCKETS,
            registry=self._registry,
        )
        self._answers = Counter(
            "lplgrad_requests", "Answers, by endpoint and status.", ["endpoint", "status"], registry=self._registry
        )
        self._errors = Counter(
            "lplgrad_errors", "Requests that ended in an error, by kind of error.", ["kind"], registry=self._registry
        )
        self._registry.register(_Projects(service))

    def refused(self, kind: str) -> None:
        """Count one error by its kind."""
        self._errors.labels(kind).inc()

    def answered(self, endpoint: str, status: str, seconds: float) -> None:
        """Count one answer."""
        self._seconds.labels(endpoint).observe(seconds)
        self._answers.labels(endpoint, status).inc()

    def page(self) -> tuple[str, bytes]:
        """Content type and text."""
        return exposition.CONTENT_TYPE_LATEST, exposition.generate_latest(self._registry)


# Name, help and further labels of what is told of each project.
GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "lplgrad_round_running": ("1 while a round runs.", ("phase",)),
    "lplgrad_phase_seconds": ("How long the round has been in its phase; absent while none runs.", ()),
    "lplgrad_round_seconds": ("Length of the last round.", ()),
    "lplgrad_version": ("Number of the newest version.", ()),
    "lplgrad_versions": ("Versions that are kept.", ()),
    "lplgrad_outdated_versions": ("Versions whose predictions are still to be removed from Label Studio.", ()),
    "lplgrad_labels": ("Labelled images of the newest version.", ("class",)),
    "lplgrad_round_image_lookups": ("Images that the newest version's round looked for in the cache.", ("result",)),
    "lplgrad_project_failing": ("1 while the last look ended in an error.", ()),
    "lplgrad_unreadable_images": ("Images that cannot be used.", ()),
}


class _Projects(Collector):
    """What is known of the queue, the cache and every project, read at each scrape."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        waiting = len(self._service.jobs.waiting())
        yield GaugeMetricFamily("lplgrad_queue_depth", "Looks asked for and not begun.", waiting)
        yield self._lookups()
        errors = CounterMetricFamily(
            "lplgrad_look_errors", "Looks at a project that ended in an error, by kind.", labels=["project", "kind"]
        )
        gauges = {
            name: GaugeMetricFamily(name, text, labels=["project", *labels]) for name, (text, labels) in GAUGES.items()
        }
        for project in self._service.store.projects():
            status = self._service.statuses.read(project)
            for kind, count in status.errors.items():
                errors.add_metric([str(project), kind], count)
            for name, labels, value in (*_of_status(status), *self._of_versions(project)):
                gauges[name].add_metric([str(project), *labels], value)
        yield from (errors, *gauges.values())

    def _lookups(self) -> Metric:
        found = CounterMetricFamily(
            "lplgrad_image_lookups", "Images that predictions looked for in the cache.", labels=["result"]
        )
        lookups = self._service.predictor.lookups
        found.add_metric(["hit"], lookups.hits)
        found.add_metric(["miss"], lookups.misses)
        return found

    def _of_versions(self, project: int) -> Iterator[Sample]:
        yield "lplgrad_versions", (), len(self._service.store.versions(project))
        yield "lplgrad_outdated_versions", (), len(self._service.learner.outdated.noted(project))
        newest = self._service.store.newest(project)
        if newest is None:
            return
        yield "lplgrad_version", (), version_number(newest.version)
        for label, count in newest.labels.items():
            yield "lplgrad_labels", (label,), count
        for result, name in (("hit", "cache_hits"), ("miss", "cache_misses")):
            if name in newest.metrics:
                yield "lplgrad_round_image_lookups", (result,), newest.metrics[name]


def _of_status(status: ProjectStatus) -> Iterator[Sample]:
    yield "lplgrad_round_running", (status.phase.value,), float(status.busy)
    yield "lplgrad_project_failing", (), float(status.last_error is not None)
    yield "lplgrad_unreadable_images", (), status.unreadable_count
    if status.busy and status.phase_started is not None:
        yield "lplgrad_phase_seconds", (), (now() - status.phase_started).total_seconds()
    if status.round_seconds is not None:
        yield "lplgrad_round_seconds", (), status.round_seconds
