"""What an operator's scraper reads: parsed as it does, counted as it happened."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path

import pytest
from falcon import testing
from prometheus_client.parser import text_string_to_metric_families
from versions import LABELING, save_version

from lplgrad_backend.api import create_app
from lplgrad_backend.jobs import memory_queue
from lplgrad_backend.metrics import Metrics
from lplgrad_backend.service import Service, build_service
from lplgrad_backend.settings import read_settings
from lplgrad_backend.status import Phase, ProjectStatus, now


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return build_service(read_settings({"MODEL_DIR": str(tmp_path)}, None), memory_queue())


def values(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(sample, labels) -> value."""
    kind, text = metrics.page()
    assert kind.startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_answers_are_counted_by_endpoint_and_status(service: Service) -> None:
    metrics = Metrics(service)
    for status in ("200", "200", "400"):
        metrics.answered("predict", status, 0.02)
    found = values(metrics)
    assert found["lplgrad_requests_total", (("endpoint", "predict"), ("status", "200"))] == 2
    assert found["lplgrad_requests_total", (("endpoint", "predict"), ("status", "400"))] == 1
    assert found["lplgrad_request_seconds_count", (("endpoint", "predict"),)] == 3
    assert found["lplgrad_request_seconds_bucket", (("endpoint", "predict"), ("le", "0.025"))] == 3
    assert found["lplgrad_request_seconds_bucket", (("endpoint", "predict"), ("le", "0.01"))] == 0


def test_a_project_without_a_version_is_there(service: Service) -> None:
    service.statuses.remember(4, None)
    found = values(Metrics(service))
    assert found["lplgrad_project_failing", (("project", "4"),)] == 0
    assert ("lplgrad_version", (("project", "4"),)) not in found


def test_a_project_is_told_by_its_version_and_status(service: Service) -> None:
    for version in ("v1", "v12"):
        save_version(service.store, 3, version)
    service.statuses.write(
        ProjectStatus(project=3, phase=Phase.TRAINING, round_seconds=12.5, last_error="x", unreadable_count=7)
    )
    service.jobs.ring(3)
    found = values(Metrics(service))
    assert found["lplgrad_version", (("project", "3"),)] == 12
    assert found["lplgrad_round_running", (("phase", "training"), ("project", "3"))] == 1
    assert found["lplgrad_round_seconds", (("project", "3"),)] == 12.5
    assert found["lplgrad_project_failing", (("project", "3"),)] == 1
    assert found["lplgrad_unreadable_images", (("project", "3"),)] == 7
    assert found["lplgrad_queue_depth", ()] == 1
    labels = service.store.manifest(3, "v12").labels
    for name in LABELING.classes:
        assert found["lplgrad_labels", (("class", name), ("project", "3"))] == labels[name]


def test_what_is_still_to_be_removed_is_told(service: Service) -> None:
    save_version(service.store, 3, "v9")
    service.learner.outdated.note(3, ["v1", "v2"])
    assert values(Metrics(service))["lplgrad_outdated_versions", (("project", "3"),)] == 2


def metrics_table(service: Service) -> str:
    """The README's table of metrics, made from what a scraper is told."""
    families = text_string_to_metric_families(Metrics(service).page()[1].decode())
    told = sorted((family.name, family.type, family.documentation) for family in families)
    return "\n".join(
        [
            "| metric | kind | tells |",
            "|---|---|---|",
            *(f"| `{name}` | {kind} | {text} |" for name, kind, text in told),
        ]
    )


def test_the_readme_lists_them_all(service: Service) -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    between = re.search(r"<!-- metrics: .*? -->\n(.*?)\n<!-- /metrics -->", readme, re.DOTALL)
    assert between is not None
    assert between.group(1) == metrics_table(service), f"write this between the markers:\n{metrics_table(service)}"


def test_errors_of_looks_are_counted_by_kind(service: Service) -> None:
    service.statuses.write(ProjectStatus(project=3, errors={"LabelStudioUnreachable": 4}))
    found = values(Metrics(service))
    assert found["lplgrad_look_errors_total", (("kind", "LabelStudioUnreachable"), ("project", "3"))] == 4


def test_the_phase_that_runs_is_timed(service: Service) -> None:
    begun = now() - timedelta(seconds=70)
    service.statuses.write(ProjectStatus(project=3, phase=Phase.SCORING, phase_started=begun))
    service.statuses.write(ProjectStatus(project=4, phase_started=begun))
    found = values(Metrics(service))
    assert found["lplgrad_phase_seconds", (("project", "3"),)] >= 70
    assert ("lplgrad_phase_seconds", (("project", "4"),)) not in found


def test_a_round_s_lookups_stand_beside_its_version(service: Service) -> None:
    save_version(service.store, 3, "v1", metrics={"cache_hits": 30.0, "cache_misses": 10.0})
    found = values(Metrics(service))
    assert found["lplgrad_round_image_lookups", (("project", "3"), ("result", "hit"))] == 30
    assert found["lplgrad_round_image_lookups", (("project", "3"), ("result", "miss"))] == 10
    assert found["lplgrad_versions", (("project", "3"),)] == 1
    assert found["lplgrad_image_lookups_total", (("result", "hit"),)] == 0


def test_errors_of_requests_are_counted_by_kind(service: Service) -> None:
    client = testing.TestClient(create_app(service))
    client.simulate_post("/train", json={"project": "none"})
    client.simulate_get("/nothing")
    text = client.simulate_get("/metrics").text
    assert 'lplgrad_errors_total{kind="RequestError"} 1.0' in text
    assert 'lplgrad_errors_total{kind="HTTPRouteNotFound"} 1.0' in text
    assert "HTTPUnauthorized" not in text


def test_the_dashboard_shows_every_metric_and_names_no_other(service: Service) -> None:
    save_version(service.store, 3, "v1", metrics={"cache_hits": 3.0, "cache_misses": 1.0})
    status = ProjectStatus(project=3, phase=Phase.TRAINING, phase_started=now(), round_seconds=1.0, errors={"X": 1})
    service.statuses.write(status)
    metrics = Metrics(service)
    metrics.answered("predict", "200", 0.1)
    metrics.refused("RequestError")
    there = {name for name, _ in values(metrics) if not name.endswith("_created")}
    text = (Path(__file__).parent.parent / "docs" / "grafana.json").read_text()
    named = set(re.findall(r"lplgrad_\w+", text))
    assert named <= there
    assert there - named <= {"lplgrad_request_seconds_count", "lplgrad_request_seconds_sum"}
    panels = json.loads(text)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(
        target["expr"].count("(") == target["expr"].count(")") for panel in panels for target in panel["targets"]
    )


def test_two_apps_in_one_process_count_apart(service: Service) -> None:
    first, second = Metrics(service), Metrics(service)
    first.answered("health", "200", 0.001)
    assert not any(name == "lplgrad_requests_total" for name, _ in values(second))
