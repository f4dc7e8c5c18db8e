"""The command line: what each command says, and what it says when it cannot do what was asked."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from fake_label_studio import LABEL_CONFIG, FakeLabelStudio
from versions import save_version

from lplgrad_backend.cli import MODULES, main
from lplgrad_backend.cli.template import start
from lplgrad_backend.connection.plan import TAB
from lplgrad_backend.settings import read_settings
from lplgrad_backend.store import Store

ROOT = Path(__file__).parent.parent
COMMANDS = list(MODULES)
CONNECT = ("connect", "--project", "1", "--url", "http://127.0.0.1:9")
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def says(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command run in this process."""
    return ended(capsys, main, arguments)


def starts(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The same of `python _wsgi.py`."""
    return ended(capsys, start, arguments)


def ended(
    capsys: pytest.CaptureFixture[str], act: Callable[[Sequence[str]], None], arguments: Sequence[str]
) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        act(arguments)
    out, err = (ESCAPES.sub("", text) for text in capsys.readouterr())
    assert "Traceback" not in out + err
    return int(caught.value.code or 0), out, err


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine where nothing is set: a command reads its environment and .env, which are its input here."""
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name.startswith(("LPLGRAD_", "LABEL_STUDIO_", "BASIC_AUTH_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MODEL_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(capsys: pytest.CaptureFixture[str], command: str) -> None:
    status, out, _ = says(capsys, command, "--help")
    assert status == 0
    assert f"python -m lplgrad_backend {command}" in out
    assert re.search(r"^ *[A-Z][\w ,;:'=-]{30}", out.partition("\n\n")[2] or out, re.MULTILINE)


def test_all_commands_are_listed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-m", "lplgrad_backend"]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    for name in COMMANDS:
        assert re.search(rf"^\W*{name}\s+[A-Z]", ESCAPES.sub("", answer.stdout + answer.stderr), re.MULTILINE)


def test_a_server_that_starts_waits_for_nothing_that_it_does_not_need() -> None:
    loaded = "import sys, lplgrad_backend.cli.running; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", loaded], cwd=ROOT, capture_output=True, text=True, timeout=100)
    modules = set(answer.stdout.split())
    assert "lplgrad_backend.serving" in modules
    assert not modules & {"sklearn", "matplotlib", "lplgrad_backend.demo.run", "lplgrad_backend.simulation.runs"}


def test_options_are_those_the_readme_shows(capsys: pytest.CaptureFixture[str]) -> None:
    shown = re.findall(
        r"python -m lplgrad_backend (\w+)((?: --[a-z-]+(?: [\w.:/]+)?)+)", (ROOT / "README.md").read_text()
    )
    assert shown
    for command, options in shown:
        _, out, _ = says(capsys, command, "--help")
        for option in re.findall(r"--[a-z-]+", options):
            assert option in out


@pytest.mark.parametrize(
    ("arguments", "environ", "word"),
    [
        (("connect", "--project", "1"), {}, "LPLGRAD_BACKEND_URL"),
        (CONNECT, {}, "LABEL_STUDIO_URL"),
        (CONNECT, {"LABEL_STUDIO_URL": "http://127.0.0.1:1"}, "LABEL_STUDIO_API_KEY"),
        (("serve",), {"LPLGRAD_DEVICE": "toaster"}, "LPLGRAD_DEVICE has the value 'toaster'"),
        (("worker",), {"LPLGRAD_SEED": "-1"}, "LPLGRAD_SEED"),
        (("check",), {"LPLGRAD_CACHE_GB": "much"}, "LPLGRAD_CACHE_GB"),
        (("demo",), {"LOG_LEVEL": "LOUD"}, "LOG_LEVEL"),
    ],
)  # fmt: skip
def test_what_is_not_set_or_set_wrong_is_a_sentence(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    environ: dict[str, str],
    word: str,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    status, _, err = says(capsys, *arguments)
    assert status == 1
    assert word in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [("serve", "--port", "70000"), ("serve", "--port", "x"), ("connect",), ("connect", "--project", "0"), ("fly",)],
)
def test_a_wrong_argument_is_explained(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    status, _, err = says(capsys, *arguments)
    assert status == 2
    assert "Usage:" in err


class TestServe:
    """What stops it before it starts. (It is run for real in test_serving.py.)"""

    @pytest.fixture
    def taken(self) -> Iterator[str]:
        """A port on which another program listens."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            yield str(other.getsockname()[1])

    @pytest.mark.parametrize("arguments", [("serve", "--host", "127.0.0.1"), ("worker",)])
    def test_a_folder_that_cannot_be_written_is_named(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, taken: str, arguments: tuple[str, ...]
    ) -> None:
        (tmp_path / "models").write_text("a file where the folder should be")
        status, _, err = says(capsys, *arguments, *(["--port", taken] if "serve" in arguments else []))
        assert status == 1
        assert "MODEL_DIR" in err

    def test_a_port_in_use_is_named(self, capsys: pytest.CaptureFixture[str], taken: str) -> None:
        status, _, err = says(capsys, "serve", "--host", "127.0.0.1", "--port", taken)
        assert status == 1
        assert f"--port has the value {taken}" in err

    def test_an_address_of_another_machine_is_named(self, capsys: pytest.CaptureFixture[str]) -> None:
        for host in ("192.0.2.1", "no such name"):
            status, _, err = says(capsys, "serve", "--host", host)
            assert status == 1
            assert f"--host has the value {host!r}" in err

    def test_label_studio_ml_s_options_are_its_own(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, taken: str
    ) -> None:
        """Those of its template, which stop here at the port that is taken."""
        every = ["--debug", "--log-level", "INFO", "--model-dir", str(tmp_path / "other"), "--check", "--with",
                 "LPLGRAD_SEED=3", "LPLGRAD_PRESET=paper", "--host", "127.0.0.1", "-p", taken]  # fmt: skip
        status, _, err = starts(capsys, *every)
        assert status == 1
        assert f"--port has the value {taken}" in err
        assert (tmp_path / "other").is_dir()
        for given, said in {"LPLGRAD_SEED=x": "LPLGRAD_SEED has the value 'x'", "colour=red": "'colour'"}.items():
            status, _, err = starts(capsys, "--with", given, "--host", "127.0.0.1", "-p", taken)
            assert status == 1
            assert said in err
        for secret in ("LABEL_STUDIO_API_KEY", "BASIC_AUTH_PASS", "LPLGRAD_QUEUE_URL"):
            status, _, err = starts(capsys, "--with", f"{secret}=pa55", "--host", "127.0.0.1", "-p", taken)
            assert status == 1
            assert secret in err and "pa55" not in err
        assert starts(capsys, "--workers", "3")[0] == 2
        assert starts(capsys, "--help")[0] == 0
        status, _, err = starts(capsys, "--host", "127.0.0.1", "--port", "70000")
        assert status == 1
        assert "65535" in err


def test_a_password_is_no_argument(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = says(capsys, "example", "--email", "me@example.com", "--password", "pa55")
    assert status == 1
    assert "LABEL_STUDIO_PASSWORD" in err
    assert "pa55" not in err


class TestCheck:
    def test_nothing_there_is_nothing_wrong(self, capsys: pytest.CaptureFixture[str]) -> None:
        status, out, _ = says(capsys, "check")
        assert status == 0
        assert "0 finding(s)" in out

    def test_a_damaged_version_is_named(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        store = Store(tmp_path / "models")
        for version in ("v1", "v2"):
            save_version(store, 3, version)
        assert says(capsys, "check")[0] == 0
        store.weights_path(3, "v2").write_bytes(b"rot")
        status, out, _ = says(capsys, "check")
        assert status == 1
        assert "v2" in out
        assert "v1" not in out


class TestConnect:
    """Against a Label Studio in memory that asks nobody."""

    @pytest.fixture
    def fake(self, monkeypatch: pytest.MonkeyPatch) -> FakeLabelStudio:
        fake = FakeLabelStudio(call=lambda *asked: (200, {"model_version": "untrained"}))
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", fake.legacy_token())
        return fake

    def test_it_says_what_it_did_and_then_that_nothing_is_left(
        self, fake: FakeLabelStudio, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        project = str(fake.add_project("Pets", LABEL_CONFIG)["id"])
        with fake.serving() as url:
            monkeypatch.setenv("LABEL_STUDIO_URL", url)
            status, first, _ = says(capsys, "connect", "--project", project, "--url", "http://127.0.0.1:9090")
            assert status == 0
            monkeypatch.setenv("LPLGRAD_BACKEND_URL", "http://127.0.0.1:9090")
            _, again, _ = says(capsys, "connect", "--project", project)
        assert TAB in first
        assert first.splitlines()[-1] == again.strip() == again.splitlines()[0]
        assert again.startswith("Connected")

    def test_what_is_wrong_is_counted_and_said(
        self, fake: FakeLabelStudio, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        project = str(fake.add_project("Pets", LABEL_CONFIG)["id"])
        with fake.serving() as url:
            monkeypatch.setenv("LABEL_STUDIO_URL", url)
            status, out, _ = says(capsys, "connect", "--project", project, "--url", "http://backend:9090")
        assert status == 1
        assert "Problem: Label Studio creates no webhook for 'backend'" in out

    def test_a_refused_token_a_missing_project_and_silence_are_sentences(
        self, fake: FakeLabelStudio, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = ("connect", "--project", "77", "--url", "http://127.0.0.1:9090")
        with fake.serving() as url:
            monkeypatch.setenv("LABEL_STUDIO_URL", url)
            status, _, missing = says(capsys, *arguments)
            assert status == 1
            assert "no project 77" in missing
            monkeypatch.setenv("LABEL_STUDIO_API_KEY", "f" * 40)
            status, _, refused = says(capsys, *arguments)
            assert status == 1
            assert "token" in refused


def test_the_command_line_reads_the_file_beside_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("LPLGRAD_PRESET=fast\n")
    status, _, err = says(capsys, "check")
    assert status == 1
    assert "LPLGRAD_PRESET has the value 'fast'" in err
    (tmp_path / ".env").write_text("LPLGRAD_PRESET=paper\n")
    assert read_settings({}).preset == "paper"
