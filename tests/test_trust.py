"""The whole program while it learns a project: what it lets others see of its secrets, its files and its processes."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from fake_label_studio import FakeLabelStudio
from learner_stage import CONFIG, choice
from PIL import Image
from programs import Program
from test_serving import ROOT, SERVE, address, server

PASSWORD, SIGNATURE, ACCESS = "a-pass-word-of-mine", "a-signature-of-mine", "an-access-token-of-mine"
USER_IN_ADDRESS, QUERY = "a-user-in-an-address", "a-word-of-a-query"
NEVER_IMPORTED = ("flask", "werkzeug", "jinja2", "itsdangerous")  # old ones, which label-studio-ml pins


@dataclass
class Observed:
    """Everything that others can see of a run."""

    secrets: dict[str, str]
    said: list[str]  # the log's lines, of all processes
    answers: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)  # process -> its arguments
    environments: dict[str, str] = field(default_factory=dict)  # the same of those that the server started
    files: dict[str, tuple[int, bytes]] = field(default_factory=dict)  # below MODEL_DIR: mode, content
    imported: list[str] = field(default_factory=list)


def picture(dark: bool, seed: int) -> bytes:
    values = np.random.default_rng(seed).integers(0, 90, (16, 16, 3)) + (0 if dark else 160)
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def project_of_pictures(fake: FakeLabelStudio) -> int:
    """24 uploads of which 12 are labelled, and two addresses that hold secrets."""
    project = int(fake.add_project("Pets", CONFIG)["id"])
    for at in range(24):
        fake.uploads[f"/data/upload/1/{at}.png"] = picture(bool(at % 2), at)
    addresses = [f"/data/upload/1/{at}.png" for at in range(24)]
    addresses += [f"http://{USER_IN_ADDRESS}:x@127.0.0.1/a.png", f"http://127.0.0.1:1/a.png?signature={SIGNATURE}"]
    tasks = fake.import_tasks(project, [{"data": {"image": uri}} for uri in addresses])
    for at, task in enumerate(tasks[:12]):
        fake.annotate(task, {"result": choice("dog" if at % 2 else "cat")}, "me@example.com")
    return project


def traps(folder: Path) -> Path:
    """A folder of modules that note who imports them."""
    for name in NEVER_IMPORTED:
        (folder / name).mkdir(parents=True)
        mark = folder / f"{name}.imported"
        (folder / name / "__init__.py").write_text(
            f"import sys\nopen({str(mark)!r}, 'a').write(repr(sys.argv))\nraise ImportError('on purpose')\n"
        )
    return folder


def descendants(process: int) -> list[int]:
    """Numbers of all processes that a process has started, directly or not."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # gone meanwhile
            continue
    found = [child for child, parent in parents.items() if parent == process]
    return found + [deeper for child in found for deeper in descendants(child)]


def look_at_processes(program: Program, observed: Observed) -> None:
    children = descendants(program.pid)
    for process in [program.pid, *children]:
        arguments = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        observed.arguments[arguments] = arguments
        if (
            process in children and "serve" not in arguments
        ):  # gunicorn's workers are forks: they have what it was given
            observed.environments[arguments] = Path(f"/proc/{process}/environ").read_bytes().decode()


def ask(url: str, path: str, observed: Observed, body: object = None) -> None:
    """Ask as Label Studio does, and as somebody without the password."""
    authorization = "Basic " + base64.b64encode(f"ann:{PASSWORD}".encode()).decode()
    for headers in ({"Authorization": authorization}, {"Authorization": f"Bearer {ACCESS}"}):
        request = urllib.request.Request(
            url + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", "Accept": "text/html", **headers},
        )
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                said = answer.read().decode(errors="replace") + str(answer.headers)
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace") + str(error.headers)
        observed.answers[f"{path} {len(observed.answers)}"] = said


def ask_for_everything(url: str, project: int, observed: Observed) -> None:
    task = {"id": 1, "data": {"image": f"http://{USER_IN_ADDRESS}:x@127.0.0.1/a.png?signature={SIGNATURE}"}}
    predict = {"tasks": [task], "project": f"{project}.1", "label_config": CONFIG, "params": {"login": USER_IN_ADDRESS}}
    ask(url, "/predict", observed, predict)
    ask(url, "/predict", observed, {"access_token": ACCESS})
    ask(url, "/webhook", observed, {"action": "ANNOTATION_CREATED", "project": {"id": project}})
    ask(url, "/webhook", observed, {"action": "COFFEE_MADE", "project": {"id": project}, "access_token": ACCESS})
    for path in (
        "/",
        "/health",
        "/metrics",
        "/versions",
        "/api/status",
        f"/projects/{project}",
        f"/api/projects/{project}",
    ):
        ask(url, f"{path}?signature={QUERY}", observed)


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """A server with its worker and a whole round, at the log's most talkative."""
    folder = tmp_path_factory.mktemp("trust")
    models, fake = folder / "models", FakeLabelStudio(call=lambda *asked: (200, {}))
    project, trapped = project_of_pictures(fake), traps(folder / "traps")
    token = fake.personal_token()
    with fake.serving() as label_studio:
        environ = {
            "LABEL_STUDIO_URL": label_studio, "LABEL_STUDIO_API_KEY": token, "BASIC_AUTH_USER": "ann",
            "BASIC_AUTH_PASS": PASSWORD, "LPLGRAD_WORKER": "embedded", "LPLGRAD_IMAGE_SIZE": "16",
            "LPLGRAD_THREADS": "1", "LOG_LEVEL": "DEBUG", "LOG_FORMAT": "json", "PYTHONPATH": f"{trapped}{os.pathsep}{ROOT}",
        }  # fmt: skip
        with server(models, SERVE, **environ) as program:
            found = Observed({"token": token, "password": PASSWORD, "signature": SIGNATURE}, program.lines)
            url = address(program)
            setup = {"project": f"{project}.1", "schema": CONFIG, "access_token": ACCESS, "extra_params": None}
            ask(url, "/setup", found, setup)
            program.wait_for("recipe ")
            look_at_processes(program, found)
            program.wait_for("Label Studio now serves by v1")
            ask_for_everything(url, project, found)
            program.send(signal.SIGTERM)
            assert program.end() == 0
    for path in models.rglob("*"):
        found.files[str(path.relative_to(models))] = (path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
    found.imported = [path.name + path.read_text() for path in trapped.glob("*.imported")]
    authorization = base64.b64encode(f"ann:{PASSWORD}".encode()).decode()
    found.secrets |= {"authorization": authorization, "access": ACCESS, "user": USER_IN_ADDRESS, "query": QUERY}
    found.secrets |= {"Label Studio's access token": "access-0"}
    yield found


def where(secrets: dict[str, str], texts: dict[str, str]) -> list[str]:
    """Where which secret stands."""
    return [
        f"{name} in {place}: {text[max(0, text.index(secret) - 80) :][:160]}"
        for place, text in texts.items()
        for name, secret in secrets.items()
        if secret in text
    ]


def test_no_secret_is_logged(observed: Observed) -> None:
    assert len(observed.said) > 10
    assert not where(observed.secrets, {"log": "\n".join(observed.said)})


def test_every_line_is_an_object_that_names_project_job_and_version(observed: Observed) -> None:
    lines = [json.loads(line) for line in observed.said]
    assert all({"time", "level", "logger", "message", "project", "job", "version"} <= line.keys() for line in lines)
    looks = {line["job"] for line in lines if line["logger"] == "lplgrad_backend.learner" and line["project"] == 1}
    round_started = next(line for line in lines if "round on 12 examples" in line["message"])
    recipe = next(line for line in lines if "recipe " in line["message"])
    served = next(line for line in lines if "now serves by v1" in line["message"])
    assert {round_started["job"], recipe["job"], served["job"]} == {round_started["job"]} <= looks
    assert recipe["process"] != served["process"]
    assert (round_started["version"], recipe["version"], served["version"]) == (None, None, "v1")
    refused = [line for line in lines if line["logger"] == "lplgrad_backend.api" and "COFFEE_MADE" in line["message"]]
    assert [line["project"] for line in refused] == [None]


def test_no_secret_is_answered(observed: Observed) -> None:
    assert any("v1" in answer for answer in observed.answers.values())
    assert not where(observed.secrets, observed.answers)
    assert not [path for path, answer in observed.answers.items() if "set-cookie" in answer.lower()]


def test_no_secret_stands_in_the_process_list(observed: Observed) -> None:
    assert {"serve", "worker", "trainer"} <= {word for arguments in observed.arguments for word in ("serve", "worker", "trainer") if word in arguments}  # fmt: skip  # noqa: E501
    assert not where(observed.secrets, observed.arguments)


def test_no_secret_stands_in_the_environment_of_a_child(observed: Observed) -> None:
    assert len(observed.environments) == 2
    assert not where(observed.secrets, observed.environments)


def test_no_other_user_can_read_what_is_written(observed: Observed) -> None:
    assert {"queue.db", "1/v1/manifest.json", "1/status.json"} <= observed.files.keys()
    assert not {path: oct(mode) for path, (mode, _) in observed.files.items() if mode & 0o007}


def test_no_secret_of_ours_is_written_at_all(observed: Observed) -> None:
    ours = {name: secret for name, secret in observed.secrets.items() if name not in ("signature", "user")}
    assert not where(ours, {path: content.decode(errors="replace") for path, (_, content) in observed.files.items()})


def test_the_old_web_libraries_are_installed_and_imported_by_no_process(observed: Observed) -> None:
    assert observed.imported == []
