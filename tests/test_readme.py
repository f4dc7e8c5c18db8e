"""The README says what is there: settings, commands, targets, files."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import textwrap
from pathlib import Path

import pytest
import typer
import yaml
from fake_label_studio import LABEL_CONFIG, FakeLabelStudio

from lplgrad_backend.cli import MODULES, app, main
from lplgrad_backend.errors import LPLGradError
from lplgrad_backend.labeling import parse_label_config
from lplgrad_backend.settings import Settings, as_text, read_settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = [path for folder in (".", "benchmarks", "docs") for path in sorted((ROOT / folder).glob("*.md"))]
COMMANDS = ("make", "cp", "docker", ".venv/bin/python")


def settings_table() -> str:
    """The README's settings table, made from the settings."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for field in Settings.model_fields.values():
        default = "" if field.default is None else f"`{as_text(field.default)}`"
        rows.append(f"| `{field.alias}` | {default} | {field.description} |")
    return "\n".join(rows)


def targets() -> set[str]:
    """What the Makefile can make by name."""
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_table_of_settings_is_the_settings() -> None:
    between = re.search(r"<!-- settings:.*?-->\n(.*?)\n<!-- /settings -->", README, re.DOTALL)
    assert between
    assert between.group(1) == settings_table(), f"write this between the markers:\n{settings_table()}"


def test_every_picture_is_small_and_one_that_make_screenshots_takes() -> None:
    pictures = set(re.findall(r"!\[[^]]{20,}\]\((docs/\w+\.png)\)", README))
    assert pictures == {str(file.relative_to(ROOT)) for file in (ROOT / "docs").glob("*.png")}
    taken = set(re.findall(r'keep\(browser, "(\w+)"\)', (ROOT / "tests/screenshots.py").read_text()))
    assert pictures == {f"docs/{name}.png" for name in taken}
    for picture in pictures:
        assert 5_000 < (ROOT / picture).stat().st_size < 150_000


def test_the_defaults_shown_are_what_nothing_set_gives() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (?:`(.*?)`)? ?\|", settings_table(), re.MULTILINE)
    assert len(rows) == len(Settings.model_fields)
    assert read_settings(dict(rows), None) == read_settings({}, None)


def test_no_other_setting_is_named() -> None:
    known = {field.alias for field in Settings.model_fields.values()}
    for file in (ROOT / "docker").glob("*.yml"):
        known |= {name for pair in re.findall(r"^ +([A-Z_]+): |\$\{([A-Z_]+)", file.read_text(), re.M) for name in pair}
    named = {
        name
        for document in DOCUMENTS
        for name in re.findall(r"\b(LPLGRAD_[A-Z_]+|LABEL_STUDIO_[A-Z_]+|BASIC_AUTH_[A-Z_]+)\b", document.read_text())
    }
    assert named <= known


def test_commands_and_targets_are_those_there_are() -> None:
    assert set(re.findall(r"python -m lplgrad_backend (\w+)", README)) == set(MODULES)
    assert set(re.findall(r"\bmake ([a-z-]+)\b", README)) == targets()


def test_what_the_readme_asks_for_in_the_makefile_is_meant_by_it() -> None:
    assert {"run", "demo", "test", "check"} <= targets()
    for variable in re.findall(r"\bmake \w+ ([A-Z]+)=", README):
        assert re.search(rf"^{variable} \?=", (ROOT / "Makefile").read_text(), re.MULTILINE), variable


def test_every_label_config_shown_can_be_learned() -> None:
    shown = re.findall(r"```xml\n(.*?)```", README, re.DOTALL)
    assert shown
    for config in shown:
        assert len(parse_label_config(config).classes) >= 2


def test_every_env_example_shown_can_be_read(tmp_path: Path) -> None:
    shown = [block for block in re.findall(r"```\w*\n(.*?)```", README, re.DOTALL) if re.match(r"\s*[A-Z_]+=", block)]
    assert shown
    for block in shown:
        (tmp_path / ".env").write_text(block)
        try:
            assert read_settings({}, tmp_path / ".env").label_studio_is_known
        except LPLGradError as error:
            pytest.fail(f"{block}: {error}")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_that_are_kept(document: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    kept = {ROOT / name for name in listed}
    kept |= {parent for path in kept for parent in path.parents}
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
    missing = [link for link in links if "://" not in link and (document.parent / link).resolve() not in kept]
    assert not missing


def test_every_test_that_the_page_on_security_names_is_there() -> None:
    named = set(re.findall(r"`((?:e2e/)?test_\w+\.py)`", (ROOT / "docs" / "security.md").read_text()))
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / "tests" / name).is_file()]


def test_the_changelog_speaks_in_sentences() -> None:
    entries = re.findall(r"^- (.*?)(?=^- |^#|\Z)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE | re.DOTALL)
    assert entries
    for entry in entries:
        assert entry.strip().endswith("."), entry
        assert entry[0].isupper() or entry.startswith("`"), entry


def shown_commands() -> list[str]:
    """Every line of a fenced block that is neither a config, a picture nor lines for .env."""
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", README, re.DOTALL | re.MULTILINE)
    blocks = [textwrap.dedent(block) for language, block in fenced if not language]
    return [
        line for block in blocks if not re.match(r"[A-Z_]+=", block) and "▶" not in block for line in block.splitlines()
    ]


def test_every_shell_command_is_of_a_kind_that_is_checked() -> None:
    assert {line.split()[0] for line in shown_commands()} == set(COMMANDS)


@pytest.mark.parametrize("line", shown_commands())
def test_a_shown_command_can_be_given(line: str) -> None:
    program, *words = shlex.split(line)
    if program == "make":
        subprocess.run(["make", "--dry-run", *words], cwd=ROOT, capture_output=True, check=True, timeout=60)
    elif program == ".venv/bin/python":
        assert words[:2] == ["-m", "lplgrad_backend"]
        command = typer.main.get_command(app).get_command(None, words[2])  # type: ignore[attr-defined]
        command.make_context(words[2], words[3:])  # raises for an option or value that is not understood
    elif program == "cp":
        assert (ROOT / words[0]).is_file()
    else:
        assert words[0] == "compose"
        files = [file for flag, file in itertools.pairwise(words) if flag == "-f"]
        assert files and all((ROOT / file).is_file() for file in files)
        services = set().union(*(yaml.safe_load((ROOT / file).read_text())["services"] for file in files))
        assert {word.partition("=")[0] for flag, word in itertools.pairwise(words) if flag == "--scale"} <= services


@pytest.mark.parametrize("command", ["connect", "doctor"])
def test_a_shown_command_does_what_it_says(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In front of a Label Studio whose first project is the one that the README names."""
    fake = FakeLabelStudio(call=lambda *asked: (200, {"model_version": "untrained"}))
    fake.numbers = itertools.count(1)
    fake.add_project("Pets", LABEL_CONFIG)
    [line] = {one for one in shown_commands() if f" {command} " in one}
    monkeypatch.chdir(tmp_path)
    with fake.serving() as url:
        environ = {"LABEL_STUDIO_URL": url, "LABEL_STUDIO_API_KEY": fake.legacy_token(), "MODEL_DIR": str(tmp_path)}
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as caught:
            main(shlex.split(line)[3:])
    said = capsys.readouterr().out
    if command == "connect":
        assert caught.value.code == 0, said
        assert "Connected: Label Studio serves" in said
        assert [row["url"] for row in fake.webhooks.values()] == ["http://127.0.0.1:9090/webhook"]
    else:
        assert caught.value.code == said.count("  failed ") > 0  # nothing is connected yet
        assert "python -m lplgrad_backend connect --project 1" in said


def test_build_arguments_named_are_those_of_the_dockerfile() -> None:
    arguments = set(re.findall(r"^ARG (\w+)=", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE))
    assert set(re.findall(r"--build-arg (\w+)=", README)) <= arguments
