"""The doctor: a healthy project has no failure, and each thing that breaks is named at its hop."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from doctor_patient import Patient
from fake_label_studio import Fault

from lplgrad_backend.cli import main
from lplgrad_backend.doctor import Finding, Outcome, as_plain, count_failures, examine, examine_environment
from lplgrad_backend.doctor.machine import machine_findings
from lplgrad_backend.doctor.reading import MachineReading, read_machine, storage_kind
from lplgrad_backend.errors import SettingsError, StoreError
from lplgrad_backend.labelstudio.ringing import WEBHOOK_SECONDS, Rung, ring
from lplgrad_backend.locks import file_lock
from lplgrad_backend.settings import read_settings
from lplgrad_backend.worker import BEAT_SECONDS, heartbeat_file

BASIC = {"BASIC_AUTH_USER": "label-studio", "BASIC_AUTH_PASS": "a secret word"}


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Patient]]:
    """Patients with a worker at work."""
    with ExitStack() as stack:

        def create(**environ: str) -> Patient:
            patient = Patient(tmp_path, **environ)
            stack.callback(patient.stop)
            assert stack.enter_context(file_lock(tmp_path / "worker.lock"))
            return patient

        yield create


@pytest.fixture
def patient(make: Callable[..., Patient]) -> Patient:
    return make()


def test_a_healthy_project_passes_every_hop(patient: Patient) -> None:
    found = patient.findings()
    assert {hop: (one.outcome, one.says) for hop, one in found.items() if one.outcome is not Outcome.OK} == {}
    assert list(found) == [
        "settings", "queue", "worker", "disk", "device", "label studio", "token",
        "network settings", "backend address", "ml backend", "webhook", "webhook answer", "webhook arrival",
        "label config", "images: upload", "rounds", "sampling", "model version", "predictions", "next task",
    ]  # fmt: skip
    lowest = min(patient.stage.unlabelled(), key=lambda task: patient.stage.predictions("v1")[task]["score"])
    assert f"task {lowest} with the lowest score" in found["next task"].says


def test_it_locks_no_task_and_leaves_nothing_behind(patient: Patient) -> None:
    before = (dict(patient.fake.served), patient.fake.webhooks_of(patient.project), dict(patient.fake.backends))
    patient.findings()
    patient.findings()
    assert before == (dict(patient.fake.served), patient.fake.webhooks_of(patient.project), patient.fake.backends)


def _unlearnable(patient: Patient) -> None:
    patient.fake.projects[patient.project]["label_config"] = "<View/>"


def _drop_prediction(patient: Patient) -> None:
    task = min(patient.stage.unlabelled())
    [row] = [row["id"] for row in patient.fake.predictions.values() if row["task"] == task]
    del patient.fake.predictions[row]


def _change_score(patient: Patient) -> None:
    for row in patient.fake.predictions.values():
        if row["task"] == min(patient.stage.unlabelled()):
            row["score"] = 0.99


def _double_webhook(patient: Patient) -> None:
    patient.fake.add_webhook({"project": patient.project, "url": f"{patient.url}/webhook"})


def _break_image(patient: Patient) -> None:
    patient.fake.uploads = dict.fromkeys(patient.fake.uploads, b"no image")


def _silence(patient: Patient) -> None:
    patient.stop()


def _fail_webhooks(patient: Patient) -> None:
    patient.server.status = 500  # type: ignore[attr-defined]


def _refuse_webhooks(patient: Patient) -> None:
    patient.server.status = 401  # type: ignore[attr-defined]


def _slow_webhooks(patient: Patient) -> None:
    patient.server.seconds = 1.2 * WEBHOOK_SECONDS  # type: ignore[attr-defined]


def _no_way_here(patient: Patient) -> None:
    patient.reachable = False


def _no_save(patient: Patient) -> None:
    patient.fake.faults = [Fault(f"PATCH /api/projects/{patient.project}", 403, times=9)]


def _another_program(patient: Patient) -> None:
    """Something answers /health there, and knows nothing of Label Studio's."""
    patient.fake.faults = [Fault("whoami", 404, times=9)]


def _tie(patient: Patient) -> None:
    first, second = sorted(patient.stage.unlabelled())[:2]
    rows = {row["task"]: row for row in patient.fake.predictions.values()}
    scores = patient.stage.store.scores(patient.project, "v1")
    known = {int(task): at for at, task in enumerate(scores.tasks)}
    for task in patient.add("/data/upload/1/0.png"):  # came later, and was scored like one of the round
        copy = {**rows[first], "id": 10**6, "task": task, "score": float(scores.scores[known[second]])}
        patient.fake.predictions[10**6] = copy


def _another_first(patient: Patient) -> None:
    """As Label Studio in which somebody gave a lower task number the same rank."""
    last = max(patient.stage.unlabelled(), key=lambda task: patient.stage.predictions("v1")[task]["score"])
    patient.stage.client.first_in_order = lambda project: last  # type: ignore[method-assign]


def _image_at(address: str, kind: str) -> Callable[[Patient], object]:
    def damage(patient: Patient) -> None:
        patient.add(address)
        patient.score_new_tasks()

    damage.__name__ = kind
    return damage


def _no_image(patient: Patient) -> None:
    patient.stage.tasks += patient.fake.import_tasks(patient.project, [{"data": {"text": "no image"}}])
    patient.score_new_tasks()


def _close_network(patient: Patient) -> None:
    patient.fake.refuses = "webhooks"


def _fail_round(patient: Patient) -> None:
    status = patient.stage.statuses.read(patient.project)
    patient.stage.statuses.write(status.model_copy(update={"last_error": "The training process ended."}))


BROKEN: tuple[tuple[Callable[[Patient], object], set[str], str], ...] = (
    (lambda p: p.fake.projects[p.project].update(sampling="Sequential sampling"), {"sampling"}, "connect --project"),
    (
        lambda p: p.fake.projects[p.project].update(model_version="LPLgrad"),
        {"model version"},
        "the newest published is v1",
    ),
    (_drop_prediction, {"predictions"}, "Start Training"),
    (_change_score, {"predictions"}, "another score than was published"),
    (_double_webhook, {"webhook"}, "there are 2 to the same address"),
    (lambda p: p.fake.webhooks.clear(), {"webhook"}, "missing"),
    (lambda p: p.webhook.update(is_active=False), {"webhook"}, "switched off"),
    (lambda p: p.fake.backends.clear(), {"ml backend"}, "not connected"),
    (_break_image, {"images: upload"}, "Upload it again"),
    (_fail_webhooks, {"webhook answer"}, "status 500"),
    (_refuse_webhooks, {"webhook answer"}, "turns it away (status 401)"),
    (_silence, {"webhook answer"}, "serve"),
    (_slow_webhooks, {"webhook answer"}, "and Label Studio waits 1 s"),
    (_no_way_here, {"webhook arrival"}, "by which Label Studio's machine or container reaches this one"),
    (_no_save, {"webhook arrival"}, "refused to save the project"),
    (_tie, {"predictions"}, "the same score as another"),
    (_another_first, {"next task"}, "which has not the lowest score"),
    (_image_at("s3://bucket/cat.png", "s3"), {"images: s3"}, "Cloud Storage > Check Connection"),
    (_image_at("gs://bucket/cat.png", "gs"), {"images: gs"}, "Cloud Storage > Check Connection"),
    (_image_at("/data/local-files/?d=cat.png", "local"), {"images: local files"}, "LOCAL_FILES_DOCUMENT_ROOT"),
    (_image_at("http://127.0.0.1:1/cat.png", "http"), {"images: http"}, "LPLGRAD_ALLOW_PRIVATE_IMAGES=true"),
    (_image_at("ftp://cats.example/cat.png", "ftp"), {"images: ftp"}, "Correct the address"),
    (_no_image, {"images: no image"}, "Correct the address"),
    (_close_network, {"network settings"}, "SSRF_PROTECTION_ENABLED=false"),
    (_unlearnable, {"label config"}, "Labeling Interface"),
    (_fail_round, {"rounds"}, "The training process ended."),
)


@pytest.mark.parametrize(("damage", "hops", "says"), BROKEN, ids=[",".join(sorted(row[1])) for row in BROKEN])
def test_what_breaks_is_named(patient: Patient, damage: Callable[[Patient], object], hops: set[str], says: str) -> None:
    address = patient.url
    damage(patient)
    failures = patient.failures(url=address)
    assert failures.keys() >= hops
    assert len(failures) <= len(hops) + (1 if "sampling" in hops else 0)
    assert any(says in failures[hop] for hop in hops), failures


def test_the_webhook_carries_the_auth_header(make: Callable[..., Patient]) -> None:
    patient = make(**BASIC)
    assert patient.failures() == {}
    patient.webhook["headers"] = {}
    assert "BASIC_AUTH_USER" in patient.failures()["webhook"]


def test_a_backend_that_refuses_is_explained(patient: Patient) -> None:
    patient.fake.call = lambda *asked: (400, {"error": "no Choices"})
    assert patient.failures().keys() >= {"ml backend"}
    patient.fake.call = lambda *asked: (_ for _ in ()).throw(ConnectionError())
    failures = patient.failures()
    assert "reach" in failures["ml backend"]
    assert "its own machine or container" in failures["backend address"]  # from here it does answer


def test_a_host_without_a_dot_is_named(patient: Patient) -> None:
    assert "'backend', a host name without a dot" in patient.failures(url="http://backend:9090")["backend address"]


def test_localhost_is_named_when_label_studio_is_elsewhere(make: Callable[..., Patient]) -> None:
    patient = make(LABEL_STUDIO_URL="http://label-studio.example")
    assert "container" in patient.failures()["backend address"]


def test_nothing_connected_and_no_address_is_said(patient: Patient) -> None:
    patient.fake.backends.clear()
    patient.fake.webhooks.clear()
    failures = patient.failures()
    assert "not known, and none is connected. Run: python -m lplgrad_backend connect" in failures["backend address"]
    assert failures.keys() == {"backend address", "ml backend", "webhook"}


def test_an_address_of_another_kind_is_named(patient: Patient) -> None:
    assert "is no http(s) address" in patient.failures(url="ftp://127.0.0.1:9090")["backend address"]


def test_network_settings_are_found_out_behind_a_password_too(make: Callable[..., Patient]) -> None:
    """With SSRF_PROTECTION_ENABLED=false alone only the row of the ML backend is refused, which holds the password."""
    patient = make(**BASIC)
    patient.fake.faults = [Fault("PATCH /api/ml/", 403, times=9)]
    before = dict(patient.backend)
    assert "Label Studio refused to say" in patient.findings()["network settings"].says
    patient.fake.faults = []
    assert patient.findings()["network settings"].outcome is Outcome.OK
    assert patient.backend == before


def test_something_else_than_label_studio_is_told_from_it(patient: Patient) -> None:
    _another_program(patient)
    failures = patient.failures()
    assert list(failures) == ["label studio"]
    assert "something else than Label Studio answers at" in failures["label studio"]


def test_an_image_of_a_cloud_storage_comes_by_the_resolver(patient: Patient) -> None:
    [task] = patient.add("s3://bucket/cat.png")
    patient.fake.redirects[f"/tasks/{task}/resolve"] = "/data/upload/1/0.png"
    assert patient.findings()["images: s3"].says == f"task {task} downloads and decodes"


def test_a_refused_token_stops_at_the_token(patient: Patient) -> None:
    patient.fake.legacy_tokens_allowed = False
    failures = patient.failures()
    assert list(failures) == ["token"]
    assert "Make a personal access token" in failures["token"]


def test_a_label_studio_that_is_down_stops_there(tmp_path: Path) -> None:
    environ = {
        "LABEL_STUDIO_URL": "http://127.0.0.1:1", "LABEL_STUDIO_API_KEY": "f" * 40, "MODEL_DIR": str(tmp_path)
    }  # fmt: skip
    found = examine_environment({**os.environ, **environ}, 1)
    assert {one.hop for one in found if one.outcome is Outcome.FAILED} == {"worker", "label studio"}


def test_a_project_that_is_not_there_is_named(patient: Patient) -> None:
    found = list(examine(patient.stage.settings, 999, client=patient.stage.client))
    assert [one.hop for one in found if one.outcome is Outcome.FAILED] == ["project"]


def test_all_known_projects_are_looked_at(patient: Patient) -> None:
    found = list(examine(patient.stage.settings, client=patient.stage.client))
    assert {one.project for one in found} == {None, patient.project}
    assert count_failures(found) == 0


class TestMachine:
    def reading(self, folder: Path) -> MachineReading:
        return MachineReading(read_settings({"MODEL_DIR": str(folder)}, None), [], True, 2**40, "cpu")

    @pytest.mark.parametrize(
        ("change", "hop", "says"),
        [
            ({"waiting": StoreError("The queue cannot be used.")}, "queue", "cannot be used"),
            ({"worker": False}, "worker", "lplgrad_backend serve"),
            ({"free_bytes": 2**20}, "disk", "make room"),
            ({"device": SettingsError("LPLGRAD_DEVICE", "cuda", "auto")}, "device", "LPLGRAD_DEVICE"),
        ],
    )
    def test_each_part_may_fail(self, tmp_path: Path, change: dict[str, object], hop: str, says: str) -> None:
        found = {one.hop: one for one in machine_findings(replace(self.reading(tmp_path), **change))}  # type: ignore[arg-type]
        assert found[hop].outcome is Outcome.FAILED
        assert says in found[hop].says

    def test_missing_settings_are_named(self, tmp_path: Path) -> None:
        first = next(machine_findings(self.reading(tmp_path)))
        assert "LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY not set" in first.says

    def test_a_worker_is_known_by_its_lock_or_its_heartbeat(self, tmp_path: Path) -> None:
        settings = read_settings({"MODEL_DIR": str(tmp_path)}, None)
        assert read_machine(settings).worker is False
        with file_lock(tmp_path / "worker.lock"):
            assert read_machine(settings).worker is True
        heartbeat_file(tmp_path).touch()
        assert read_machine(settings).worker is False
        settings = read_settings({"MODEL_DIR": str(tmp_path), "LPLGRAD_QUEUE_URL": "redis://127.0.0.1:1"}, None)
        assert read_machine(settings).worker is True
        long_ago = heartbeat_file(tmp_path).stat().st_mtime - 5 * BEAT_SECONDS
        os.utime(heartbeat_file(tmp_path), (long_ago, long_ago))
        assert read_machine(settings).worker is False


def test_a_wrong_setting_is_one_failure() -> None:
    [finding] = examine_environment({"LPLGRAD_SEED": "odd"})
    assert (finding.hop, finding.outcome) == ("settings", Outcome.FAILED)


def test_json_is_stable() -> None:
    found = [Finding("queue", Outcome.OK, "fine"), Finding("webhook", Outcome.FAILED, "missing", 3)]
    assert json.loads(json.dumps(as_plain(found))) == {
        "failures": 1,
        "findings": [
            {"hop": "queue", "outcome": "ok", "says": "fine", "project": None},
            {"hop": "webhook", "outcome": "failed", "says": "missing", "project": 3},
        ],
    }


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_exits_with_the_number_of_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    for name in ("LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as caught:
        main(["doctor", *(["--json"] if as_json else [])])
    out = capsys.readouterr().out
    assert caught.value.code == 2  # settings, worker
    if as_json:
        assert json.loads(out)["failures"] == 2
    else:
        assert "failed  settings: LABEL_STUDIO_URL" in out
        assert "\x1b" not in out
        assert out.endswith("2 failure(s)\n")


def test_a_webhook_nobody_answers() -> None:
    assert ring("http://127.0.0.1:1/webhook", {}, 1, "").status is None
    assert Rung(201, 0.1).status == 201


@pytest.mark.parametrize(
    ("uri", "kind"),
    [("/data/upload/1/a.png", "upload"), ("/data/local-files/?d=a", "local files"), ("s3://b/a", "s3"),
     ("https://a.example/b.png", "https"), ("a.png", "other")],
)  # fmt: skip
def test_storage_kinds(uri: str, kind: str) -> None:
    assert storage_kind(uri) == kind
