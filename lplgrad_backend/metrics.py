"""`/metrics`: what an operator watches, in Prometheus' text form."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, exposition
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lplgrad_backend.service import Service
from lplgrad_backend.store import version_number

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
        self._registry.register(_Projects(service))

    def answered(self, endpoint: str, status: str, seconds: float) -> None:
        """Count one answer."""
        self._seconds.labels(endpoint).observe(seconds)
        self._answers.labels(endpoint, status).inc()

    def page(self) -> tuple[str, bytes]:
        """Content type and text."""
        return exposition.CONTENT_TYPE_LATEST, exposition.generate_latest(self._registry)


class _Projects(Collector):
    """Gauges of every known project."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "lplgrad_queue_depth", "Looks asked for and not begun.", len(self._service.jobs.waiting())
        )
        busy = GaugeMetricFamily("lplgrad_round_running", "1 while a round runs.", labels=["project", "phase"])
        version = GaugeMetricFamily("lplgrad_version", "Number of the newest version.", labels=["project"])
        labels = GaugeMetricFamily(
            "lplgrad_labels", "Labelled images of the newest version.", labels=["project", "class"]
        )
        seconds = GaugeMetricFamily("lplgrad_round_seconds", "Length of the last round.", labels=["project"])
        failing = GaugeMetricFamily(
            "lplgrad_project_failing", "1 while the last look ended in an error.", labels=["project"]
        )
        unreadable = GaugeMetricFamily("lplgrad_unreadable_images", "Images that cannot be used.", labels=["project"])
        for project in self._service.store.projects():
            status, name = self._service.statuses.read(project), str(project)
            busy.add_metric([name, status.phase.value], float(status.busy))
            failing.add_metric([name], float(status.last_error is not None))
            unreadable.add_metric([name], status.unreadable_count)
            if status.round_seconds is not None:
                seconds.add_metric([name], status.round_seconds)
            newest = self._service.store.newest(project)
            if newest is not None:
                version.add_metric([name], version_number(newest.version))
                for label, count in newest.labels.items():
                    labels.add_metric([name, label], count)
        yield from (busy, version, labels, seconds, failing, unreadable)
