"""The container files, read: what a start in the wrong order or an address without a dot would only show much later."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from lplgrad_backend.connection.plan import is_dotted
from lplgrad_backend.rounds import GRACE_SECONDS
from lplgrad_backend.settings import read_settings

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()


def services(*names: str) -> dict[str, dict[str, Any]]:
    merged: dict[str, dict[str, Any]] = {}
    for name in names:
        for service, fields in yaml.safe_load((DOCKER / name).read_text())["services"].items():
            known = merged.setdefault(service, {})
            for key, value in fields.items():
                known[key] = {**known.get(key, {}), **value} if isinstance(value, dict) else value
    return merged


ONE = services("docker-compose.yml")
SCALED = services("docker-compose.yml", "docker-compose.scale.yml")


def test_label_studio_lets_containers_in() -> None:
    environment = ONE["label-studio"]["environment"]
    assert (environment["ML_BLOCK_LOCAL_IP"], environment["SSRF_PROTECTION_ENABLED"]) == ("false", "false")


def test_the_address_is_an_alias_with_a_dot() -> None:
    url = ONE["demo"]["environment"]["LPLGRAD_BACKEND_URL"]
    assert is_dotted(url)
    assert urlsplit(url).hostname in ONE["web"]["networks"]["default"]["aliases"]
    assert f"EXPOSE {urlsplit(url).port}" in DOCKERFILE


def test_each_waits_for_the_health_of_what_it_needs() -> None:
    for name, needed in {"web": {"label-studio"}, "worker": {"web", "redis"}, "demo": {"label-studio", "web"}}.items():
        assert set(SCALED[name]["depends_on"]) >= needed
        for other, wanted in SCALED[name]["depends_on"].items():
            assert wanted["condition"] == "service_healthy"
            own = SCALED[other].get("healthcheck")
            assert own != {"disable": True} and (own or "HEALTHCHECK" in DOCKERFILE)


def seconds(health: dict[str, str], *names: str) -> list[int]:
    return [int(health[name].removesuffix("s")) for name in names]


def test_a_slow_machine_is_not_unhealthy() -> None:
    """Its first start may take five minutes, and it may be busy for one with what starts after it."""
    options = dict(re.findall(r"--([a-z-]+)=(\w+)", DOCKERFILE[DOCKERFILE.index("HEALTHCHECK") :]))
    for health in ONE["label-studio"]["healthcheck"], {name.replace("-", "_"): text for name, text in options.items()}:
        start, interval, timeout = seconds(health, "start_period", "interval", "timeout")
        assert start >= 300 and timeout >= 10
        assert int(health["retries"]) * interval >= 60


def test_a_stop_leaves_a_round_the_time_it_takes() -> None:
    for name in ("web", "worker", "demo"):
        assert int(ONE[name]["stop_grace_period"].removesuffix("s")) > 2 * GRACE_SECONDS


def test_what_serves_is_started_again_and_what_is_done_is_not() -> None:
    assert {name: fields["restart"] for name, fields in ONE.items()} == {
        "label-studio": "unless-stopped", "web": "unless-stopped", "worker": "unless-stopped", "demo": "no",
    }  # fmt: skip


def test_all_share_one_folder_and_the_scaled_ones_one_queue() -> None:
    assert "VOLUME /data" in DOCKERFILE and "MODEL_DIR=/data" in DOCKERFILE
    for name in ("web", "worker"):
        assert SCALED[name]["volumes"] == ["models:/data"]
    queues = {SCALED[name]["environment"]["LPLGRAD_QUEUE_URL"] for name in ("web", "worker")}
    assert [urlsplit(url).hostname in SCALED for url in queues] == [True]


def test_the_settings_given_can_be_read() -> None:
    lines = dict(line.split("=", 1) for line in (DOCKER / "example.env").read_text().splitlines())
    assert len(lines) == 3
    for name in ("web", "worker", "demo"):
        environ = {key: re.sub(r"\$\{(\w+)[^}]*\}", lambda found: lines.get(found[1], ""), value)
                   for key, value in SCALED[name]["environment"].items()}  # fmt: skip
        assert read_settings(environ, None).label_studio_is_known


def test_compose_builds_what_docker_builds_when_nothing_is_set() -> None:
    unset = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", str(value)) for name, value in ONE["web"]["build"]["args"].items()}
    own = dict(re.findall(r"^ARG (\w+)=(.*)$", DOCKERFILE, re.MULTILINE))
    assert unset.items() <= own.items()
    assert own.keys() - unset.keys() == {"BASE"}


def test_the_image_runs_as_nobody_special() -> None:
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == ["lplgrad"]
    assert DOCKERFILE.index("USER lplgrad") > DOCKERFILE.rindex("\nRUN ")


def test_a_build_sees_only_what_is_named() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    named = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(?:--chown=\S+ )?(.*) \S+$", DOCKERFILE, re.MULTILINE)
        for word in line.split()
    }
    assert copied == named
    assert all((ROOT / name).exists() for name in named)


def test_no_index_is_named() -> None:
    for file in DOCKER.glob("*"):
        if file.is_file():
            hosts = {urlsplit(url).hostname for url in re.findall(r"https?://[^\s'\"]+", file.read_text())}
            assert hosts <= {"127.0.0.1", "localhost", "label-studio", "lplgrad.local"}, file.name
    assert re.search(r"^ARG PIP_EXTRA_INDEX_URL=$", DOCKERFILE, re.MULTILINE)
