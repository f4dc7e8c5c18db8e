"""The web process: each way to start it as a real process, what it says is missing, what stops it before it starts."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_label_studio import LABEL_CONFIG
from gunicorn.arbiter import Arbiter
from gunicorn.config import Config
from programs import Program

from lplgrad_backend.errors import SettingsError
from lplgrad_backend.serving import (
    OPTIONS,
    JsonLog,
    Server,
    application_of_environment,
    check_address,
    check_folder,
    missing_settings,
    say_what_is_missing,
)
from lplgrad_backend.settings import Settings, read_settings

ROOT = Path(__file__).parent.parent
SCRIPTS = Path(sys.executable).parent
# Port 0 is any free one; the log says which.
SERVE = ("-m", "lplgrad_backend", "serve", "--host", "127.0.0.1", "--port", "0")
TEMPLATE = ("_wsgi.py", "--port", "0", "--host", "127.0.0.1")
GUNICORN = (str(SCRIPTS / "gunicorn"), "_wsgi:app", "-b", "127.0.0.1:0")
LABEL_STUDIO_ML = (str(SCRIPTS / "label-studio-ml"), "start", str(ROOT), "--port", "0", "--host", "127.0.0.1")
KNOWN_SETTINGS = frozenset(Config().settings)
UNTRAINED = {"result": [], "score": 0.5, "model_version": "untrained"}


def settings(**environ: str) -> Settings:
    return read_settings(environ, None)


def server(models: Path, arguments: tuple[str, ...], folder: Path = ROOT, **environ: str) -> Program:
    """A server of which nothing is set but its models' folder, whatever a person's own environment and .env hold."""
    empty = dict.fromkeys((str(field.alias) for field in Settings.model_fields.values()), "")
    known = {
        "MODEL_DIR": str(models),
        "LPLGRAD_WORKER": "external",
        "GUNICORN_CMD_ARGS": "",
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",  # label-studio-ml runs whatever `python` is
        "PYTHONPATH": str(ROOT),
    }
    return Program(arguments, {**empty, **known, **environ}, folder)


def address(program: Program) -> str:
    """Where it listens, which it says when it does."""
    said = program.wait_for("Listening at: ")
    found = re.search(r"http://127\.0\.0\.1:\d+", said)
    assert found, said
    return found[0]


def asked(url: str, body: object = None) -> Any:
    """What it answers to GET, or to POST with a body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=60) as answer:
        return json.load(answer)


def answers_untrained(url: str) -> bool:
    """Whether it is up and gives each task an empty result, as before the first version."""
    tasks = [{"id": number, "data": {"image": f"/{number}.png"}} for number in (1, 2, 3)]
    body = {"tasks": tasks, "project": "3.1", "label_config": LABEL_CONFIG, "params": {}}
    return bool(
        asked(f"{url}/health")["status"] == "UP" and asked(f"{url}/predict", body)["results"] == [UNTRAINED] * 3
    )


class TestEachWayToStart:
    """All of them without LABEL_STUDIO_URL, which is said and stops nothing. `end` returns when no process is left."""

    @pytest.mark.parametrize("arguments", [SERVE, TEMPLATE, GUNICORN], ids=["serve", "_wsgi.py", "gunicorn"])
    def test_it_answers_and_leaves_when_asked(self, tmp_path: Path, arguments: tuple[str, ...]) -> None:
        with server(tmp_path, arguments) as program:
            assert answers_untrained(address(program))
            program.send(signal.SIGTERM)
            assert program.end() == 0
        said = "\n".join(program.lines)
        assert "LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY not set: nothing is trained or published" in said
        assert "BASIC_AUTH_USER and BASIC_AUTH_PASS not set" in said
        assert "Traceback" not in said

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)])
    def test_label_studio_ml_starts_it(self, tmp_path: Path, number: int, status: int) -> None:
        """label-studio-ml runs it through a shell and hands no signal on: it ends with one to the group, as Ctrl-C is.
        label-studio-ml itself waits through SIGINT, and dies of SIGTERM."""
        with server(tmp_path, LABEL_STUDIO_ML, tmp_path) as program:
            assert answers_untrained(address(program))
            program.send_to_all(number)
            assert program.end() == status
        said = "\n".join(program.lines)
        assert "LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY not set" in said
        assert "Shutting down: Master" in said
        assert "Traceback" not in said

    def test_ctrl_c_ends_server_and_embedded_worker(self, tmp_path: Path) -> None:
        with server(tmp_path, SERVE, tmp_path, LPLGRAD_WORKER="embedded") as program:
            url = address(program)
            program.wait_for("worker ready")
            assert answers_untrained(url)
            program.send_to_all(signal.SIGINT)
            assert program.end() == 0
        assert any("worker ends" in line for line in program.lines)
        assert not any("starting another" in line or "Traceback" in line for line in program.lines)

    def test_with_json_lines_everything_that_gunicorn_and_the_backend_say_is_one_object_a_line(
        self, tmp_path: Path
    ) -> None:
        with server(tmp_path, GUNICORN, LOG_FORMAT="json", LOG_LEVEL="DEBUG", LPLGRAD_WORKER="embedded") as program:
            url = address(program)
            program.wait_for("worker ready")
            assert answers_untrained(url)
            for path, body in (("/webhook", {"action": 7}), ("/predict", {"tasks": "none"}), ("/no-such-path", None)):
                with pytest.raises(urllib.error.HTTPError) as refused:
                    asked(url + path, body)
                refused.value.close()
            asked(f"{url}/webhook", {"action": "ANNOTATION_CREATED", "project": {"id": 5}})
            program.wait_for("project 5: ")
            program.send(signal.SIGTERM)
            assert program.end() == 0
        lines = [json.loads(line) for line in program.lines]
        wanted = {"time", "level", "logger", "process", "project", "job", "version", "message"}
        assert all(wanted <= line.keys() for line in lines)
        assert {"gunicorn.error", "lplgrad_backend.learner"} <= {line["logger"] for line in lines}
        assert len({line["process"] for line in lines}) >= 3, "server, web and worker"
        [look] = [line for line in lines if line["message"].startswith("project 5: ")][:1]
        assert look["project"] == 5 and look["job"]

    def test_gunicorn_stops_at_a_setting_that_cannot_be_used(self, tmp_path: Path) -> None:
        with server(tmp_path, GUNICORN, LPLGRAD_SEED="x") as program:
            assert program.end() == Arbiter.APP_LOAD_ERROR
        assert any(line.startswith("LPLGRAD_SEED has the value 'x'") for line in program.lines)
        assert not any("Traceback" in line for line in program.lines)


class TestMissingSettings:
    KNOWN = {"LABEL_STUDIO_URL": "http://127.0.0.1:8080", "LABEL_STUDIO_API_KEY": "f" * 40}  # noqa: RUF012
    CLOSED = {"BASIC_AUTH_USER": "ann", "BASIC_AUTH_PASS": "secret"}  # noqa: RUF012

    def test_nothing_is_missing_where_all_is_set(self) -> None:
        assert missing_settings(settings(**self.KNOWN, **self.CLOSED)) == []

    @pytest.mark.parametrize("name", KNOWN)
    def test_half_of_label_studio_is_named_alone(self, name: str) -> None:
        given = {key: value for key, value in self.KNOWN.items() if key != name}
        (sentence,) = missing_settings(settings(**given, **self.CLOSED))
        assert sentence.startswith(f"{name} not set: ")

    def test_all_that_is_missing_is_said(self) -> None:
        label_studio, open_port = missing_settings(settings())
        assert label_studio.startswith("LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY not set: nothing is trained")
        assert open_port.startswith("BASIC_AUTH_USER and BASIC_AUTH_PASS not set: whoever reaches this port")

    @pytest.mark.parametrize(("mode", "said"), [(0o600, False), (0o640, False), (0o644, True), (0o604, True)])
    def test_a_file_of_settings_that_all_may_read_is_said(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, said: bool
    ) -> None:
        file = tmp_path / ".env"
        say_what_is_missing(settings(**self.KNOWN, **self.CLOSED), file)
        file.touch()
        file.chmod(mode)
        assert caplog.text == ""
        say_what_is_missing(settings(**self.KNOWN, **self.CLOSED), file)
        assert ("chmod 600" in caplog.text) is said

    def test_no_secret_is_said(self) -> None:
        said = " ".join(missing_settings(settings(LABEL_STUDIO_API_KEY="f" * 40)))
        assert "LABEL_STUDIO_URL not set" in said
        assert "ffff" not in said


class TestFolder:
    def refusal(self, folder: Path) -> None:
        with pytest.raises(SettingsError, match=r"MODEL_DIR has the value .* a folder that can be written") as caught:
            check_folder(settings(MODEL_DIR=str(folder)))
        assert caught.value.value == str(folder)

    def test_it_is_made_and_left_empty(self, tmp_path: Path) -> None:
        check_folder(settings(MODEL_DIR=str(tmp_path / "new" / "models")))
        assert list((tmp_path / "new" / "models").iterdir()) == []

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        self.refusal(tmp_path / "file")
        self.refusal(tmp_path / "file" / "models")

    @pytest.mark.parametrize("folder", ["/sys", "/proc/self"])
    def test_a_folder_in_which_nobody_may_write(self, folder: str) -> None:
        """Not even root, to whom a folder's mode says nothing."""
        self.refusal(Path(folder))


class TestAddress:
    @pytest.fixture
    def taken(self) -> Iterator[int]:
        """A port on which another program listens."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            yield other.getsockname()[1]

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", ""])
    def test_any_free_port_of_this_machine(self, host: str) -> None:
        check_address(host, 0)

    def test_a_taken_port(self, taken: int) -> None:
        with pytest.raises(SettingsError, match=f"--port has the value {taken}.*a free port"):
            check_address("127.0.0.1", taken)

    def test_a_port_is_free_again_after_the_check(self, taken: int) -> None:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
        for _ in range(2):
            check_address("127.0.0.1", port)

    @pytest.mark.parametrize("host", ["192.0.2.1", "no such name"])
    def test_an_address_of_another_machine(self, host: str) -> None:
        with pytest.raises(SettingsError, match=f"--host has the value '{host}'.*an address of this machine"):
            check_address(host, 0)

    @pytest.mark.parametrize("port", [-1, 65536])
    def test_no_port_at_all(self, port: int) -> None:
        with pytest.raises(SettingsError, match="a number from 0 to 65535"):
            check_address("127.0.0.1", port)


class TestAddressOfIPv6:
    @pytest.fixture
    def other(self) -> Iterator[socket.socket | None]:
        """Another program that listens on ::1; None on a machine that has no such address."""
        try:
            listening = socket.create_server(("::1", 0), family=socket.AF_INET6)
        except OSError:
            yield None
            return
        with listening:
            yield listening

    def test_it_is_checked(self, other: socket.socket | None) -> None:
        if other is None:
            with pytest.raises(SettingsError, match=r"--host has the value '::1'.*an address of this machine"):
                check_address("::1", 0)
            return
        check_address("::1", 0)
        port = other.getsockname()[1]
        with pytest.raises(SettingsError, match=f"--port has the value {port}"):
            check_address("::1", port)

    def test_it_is_written_without_brackets(self) -> None:
        with pytest.raises(SettingsError, match="--host has the value"):
            check_address("[::1]", 0)

    def test_gunicorn_is_told_host_and_port_apart(self) -> None:
        assert Server(settings(), "::1", 9090).cfg.address == [("::1", 9090)]
        assert Server(settings(), "127.0.0.1", 9090).cfg.address == [("127.0.0.1", 9090)]


@pytest.mark.parametrize(
    ("environ", "file", "json_lines"),
    [
        (None, None, False),
        ("json", None, True),
        ("text", None, False),
        (None, b"LOG_FORMAT=json", True),
        ("text", b"LOG_FORMAT=json", False),
        (None, b"\xff\xfe", False),
    ],
)
def test_gunicorn_is_told_the_same_by_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: str | None, file: bytes | None, json_lines: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOG_FORMAT", raising=False)
    if environ is not None:
        monkeypatch.setenv("LOG_FORMAT", environ)
    if file is not None:
        (tmp_path / ".env").write_bytes(file)
    told = runpy.run_path(str(ROOT / "gunicorn.conf.py"))
    log = {"logger_class": f"{JsonLog.__module__}.{JsonLog.__name__}"} if json_lines else {}
    assert {name: told[name] for name in told.keys() & KNOWN_SETTINGS} == OPTIONS | log


class TestApplicationOfEnvironment:
    """In this process; a server that is not ours would be ended by it."""

    @pytest.mark.parametrize(
        ("name", "value"), [("LPLGRAD_SEED", "x"), ("MODEL_DIR", "/proc/self"), ("BASIC_AUTH_USER", "ann")]
    )
    def test_what_cannot_be_used_is_a_sentence(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        name: str,
        value: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)  # no .env
        for variable in (str(field.alias) for field in Settings.model_fields.values()):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("MODEL_DIR", str(tmp_path))
        monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as caught:
            application_of_environment()
        assert caught.value.code == Arbiter.APP_LOAD_ERROR
        (sentence,) = capsys.readouterr().err.splitlines()
        assert name in sentence
