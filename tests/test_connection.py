"""Connecting a project: once, again, after somebody changed something, and when Label Studio does not want to."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fake_label_studio import LABEL_CONFIG, FakeLabelStudio, Fault
from sites import FakeSite, RealSite, Site, row

from lplgrad_backend.connection import Report, connect, verify
from lplgrad_backend.connection.plan import TAB, VIEW, State, Wanted, is_dotted, plan
from lplgrad_backend.errors import LabelStudioError, LabelStudioNotFound, LabelStudioRefused, LabelStudioUnreachable
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.publication import SAMPLING

BASIC = ("label-studio", "a secret word")
AUTHORIZATION = "Basic " + base64.b64encode(b"label-studio:a secret word").decode()


class SmallBackend(ThreadingHTTPServer):
    """Answers /health and /setup, and notes what it is asked. `status` is what /setup answers with."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.authorization: str | None = None
        self.status = 200
        self.heard: list[tuple[str, str | None, Any]] = []  # path, Authorization, body

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: SmallBackend

    def do_GET(self) -> None:
        self._answer(200)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        given = self.headers.get("Authorization")
        self.server.heard.append((self.path, given, body))
        if self.server.authorization not in (None, given):
            self._answer(401)
        else:
            self._answer(self.server.status if self.path == "/setup" else 200)

    def _answer(self, status: int) -> None:
        content = b'{"status": "UP", "model_version": "untrained"}'
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def start_backend() -> Iterator[Callable[[], SmallBackend]]:
    started: list[SmallBackend] = []

    def start() -> SmallBackend:
        started.append(SmallBackend())
        started[-1].start()
        return started[-1]

    yield start
    for backend in started:
        backend.stop()


@pytest.fixture
def backend(start_backend: Callable[[], SmallBackend]) -> SmallBackend:
    return start_backend()


@pytest.fixture(params=["fake", pytest.param("real", marks=[pytest.mark.e2e, pytest.mark.timeout(600)])])
def site(request: pytest.FixtureRequest) -> Site:
    if request.param == "fake":
        return FakeSite()
    return RealSite(request.getfixturevalue("label_studio"), request.getfixturevalue("owner"))


@pytest.fixture
def project(site: Site) -> int:
    return site.project(3)


def webhook_addresses(client: LabelStudio, project: int) -> list[str]:
    return [webhook["url"] for webhook in client.webhooks(project)]


class TestOnAnyLabelStudio:
    def test_it_makes_everything_once(self, site: Site, project: int, backend: SmallBackend) -> None:
        assert verify(site.client, project, backend.url) == [
            f"Project {project} has no ML backend at {backend.url}: run `connect`."
        ]
        report = connect(site.client, project, backend.url)
        assert report.steps == (
            f"Connected the backend {backend.url}.",
            f"Set the project's sampling = '{SAMPLING}'.",
            "Created the tab 'Default'.",
            f"Created the tab '{TAB}'.",
        )
        assert report.problems == ()
        for address in (backend.url, backend.url + "/"):
            assert connect(site.client, project, address) == Report((), ())
            assert verify(site.client, project, address) == []
        [ours] = site.client.ml_backends(project)
        assert (ours["url"], ours["title"], ours["state"]) == (backend.url, "LPLgrad", "CO")
        assert webhook_addresses(site.client, project) == [f"{backend.url}/webhook"]
        assert site.client.project(project)["model_version"] == "LPLgrad"

    def test_ghosts_of_the_webhook_are_removed_and_others_stay(
        self, site: Site, project: int, backend: SmallBackend
    ) -> None:
        connect(site.client, project, backend.url)
        for address in (f"{backend.url}/webhook", f"{backend.url}/webhook/", "http://other.example/webhook"):
            site.client.add_webhook({"project": project, "url": address})
        assert any("webhook" in problem for problem in verify(site.client, project, backend.url))
        assert len(connect(site.client, project, backend.url).steps) == 2
        assert webhook_addresses(site.client, project) == [f"{backend.url}/webhook", "http://other.example/webhook"]

    def test_a_changed_webhook_is_repaired(self, site: Site, project: int, backend: SmallBackend) -> None:
        connect(site.client, project, backend.url)
        [webhook] = site.client.webhooks(project)
        site.client.update_webhook(webhook["id"], {"url": webhook["url"], "is_active": False, "send_payload": False})
        report = connect(site.client, project, backend.url)
        assert report == Report(("Repaired the webhook (is_active, send_payload).",), ())
        assert site.client.webhooks(project)[0]["is_active"]

    def test_a_backend_connected_by_hand_keeps_its_name(self, site: Site, project: int, backend: SmallBackend) -> None:
        site.client.add_ml_backend({"project": project, "url": backend.url + "/", "title": "My own name"})
        site.client.add_ml_backend({"project": project, "url": backend.url, "title": "Twice"})
        assert connect(site.client, project, backend.url).problems == ()
        assert [row["title"] for row in site.client.ml_backends(project)] == ["My own name"]
        assert webhook_addresses(site.client, project) == [f"{backend.url}/webhook"]

    def test_basic_auth_reaches_the_backend_and_the_webhook(
        self, site: Site, project: int, backend: SmallBackend
    ) -> None:
        backend.authorization = AUTHORIZATION
        with pytest.raises(LabelStudioError, match="asks for another user or password"):
            connect(site.client, project, backend.url, basic_auth=("label-studio", "wrong"))
        assert connect(site.client, project, backend.url, basic_auth=BASIC).problems == ()
        assert connect(site.client, project, backend.url, basic_auth=BASIC) == Report((), ())
        backend.heard.clear()
        site.annotate(next(site.client.unlabelled_tasks(project))[0])
        events = [(given, body["action"]) for path, given, body in backend.heard if path == "/webhook"]
        assert events == [(AUTHORIZATION, "ANNOTATION_CREATED")]

    def test_a_new_password_is_set_and_asked_for(self, site: Site, project: int, backend: SmallBackend) -> None:
        backend.authorization = AUTHORIZATION
        connect(site.client, project, backend.url, basic_auth=BASIC)
        changed = ("label-studio", "another word")
        backend.authorization = "Basic " + base64.b64encode(":".join(changed).encode()).decode()
        [problem] = verify(site.client, project, backend.url, basic_auth=BASIC)
        assert "BASIC_AUTH_USER" in problem
        report = connect(site.client, project, backend.url, basic_auth=changed)
        assert (len(report.steps), report.problems) == (2, ())

    def test_a_published_version_stays_what_the_project_serves_by(
        self, site: Site, project: int, backend: SmallBackend
    ) -> None:
        tasks = [task for task, _ in site.client.unlabelled_tasks(project)]
        for version in ("v1", "v2"):
            site.client.push_predictions(project, [row(task, version=version) for task in tasks])
        site.client.update_project(project, model_version="v1")
        connect(site.client, project, backend.url)
        assert site.client.project(project)["model_version"] == "v1"
        assert any("model version" in said for said in verify(site.client, project, backend.url, current_version="v2"))
        connect(site.client, project, backend.url, current_version="v2")
        assert site.client.project(project)["model_version"] == "v2"
        assert connect(site.client, project, backend.url, current_version="v3") == Report((), ())

    def test_a_backend_that_moved_takes_its_row_along(
        self, site: Site, project: int, start_backend: Callable[[], SmallBackend], backend: SmallBackend
    ) -> None:
        before = SmallBackend()
        before.start()
        connect(site.client, project, before.url)
        before.stop()
        assert any("cannot reach" in problem for problem in verify(site.client, project, before.url))
        assert connect(site.client, project, backend.url).problems == ()
        assert [row["url"] for row in site.client.ml_backends(project)] == [backend.url]
        assert webhook_addresses(site.client, project) == [f"{backend.url}/webhook"]

    def test_a_changed_tab_is_repaired_but_not_its_columns(
        self, site: Site, project: int, backend: SmallBackend
    ) -> None:
        connect(site.client, project, backend.url)
        tab = next(view for view in site.client.views(project) if view["data"]["title"] == TAB)
        changed = tab["data"] | {"ordering": ["-tasks:id"], "gridWidth": 7}
        site.client.update_view(tab["id"], {"project": project, "data": changed})
        assert len(verify(site.client, project, backend.url)) == 1
        assert connect(site.client, project, backend.url) == Report((f"Repaired the tab '{TAB}'.",), ())
        repaired = next(view["data"] for view in site.client.views(project) if view["id"] == tab["id"])
        assert (repaired["ordering"], repaired["gridWidth"]) == (VIEW["ordering"], 7)

    def test_a_refusal_by_the_backend_is_explained(self, site: Site, project: int, backend: SmallBackend) -> None:
        backend.status = 400
        with pytest.raises(LabelStudioError, match="most likely its label config"):
            connect(site.client, project, backend.url)

    def test_a_backend_that_is_down_is_explained(self, site: Site, project: int) -> None:
        down = SmallBackend()
        down.server_close()
        with pytest.raises(LabelStudioError, match=f"cannot reach {down.url}. Start the backend"):
            connect(site.client, project, down.url)

    def test_no_such_project(self, site: Site) -> None:
        with pytest.raises(LabelStudioNotFound, match="there is no project 999999"):
            connect(site.client, 999999, "http://backend.example")
        assert len(verify(site.client, 999999, "http://backend.example")) == 1

    def test_only_the_first_model_counts(
        self, site: Site, project: int, backend: SmallBackend, start_backend: Callable[[], SmallBackend]
    ) -> None:
        first = start_backend()
        site.client.add_ml_backend({"project": project, "url": first.url, "title": "Another model"})
        [problem] = connect(site.client, project, backend.url).problems
        assert "uses only a project's first model, which is 'Another model'" in problem


def up(method: str, url: str, body: object, headers: object) -> tuple[int, Any]:
    """A backend that is content with everything."""
    return 200, {"model_version": "untrained"}


def connected_fake(refuses: str = "nothing") -> tuple[FakeLabelStudio, LabelStudio, int]:
    fake = FakeLabelStudio(up, refuses)
    client = LabelStudio(fake.url, fake.legacy_token(), session=fake.session(), pause=lambda seconds: None)
    return fake, client, int(fake.add_project("Images", LABEL_CONFIG)["id"])


class TestWhatLabelStudioRefuses:
    @pytest.mark.parametrize("refuses", ["backends", "webhooks"])
    def test_its_network_settings_are_named(self, refuses: str) -> None:
        fake, client, project = connected_fake(refuses)
        for _ in range(2):
            with pytest.raises(LabelStudioRefused, match=r"ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false"):
                connect(client, project, "http://127.0.0.1:9090")
        fake.refuses = "nothing"
        assert connect(client, project, "http://127.0.0.1:9090").problems == ()

    def test_a_host_without_a_dot_gets_no_webhook(self) -> None:
        _, client, project = connected_fake()
        report = connect(client, project, "http://backend:9090")
        assert client.webhooks(project) == []
        [problem] = report.problems
        assert "'backend', a host name without a dot" in problem

    def test_the_token_is_refused(self) -> None:
        fake, client, project = connected_fake()
        fake.legacy_tokens_allowed = False
        [problem] = verify(client, project, "http://backend.example")
        assert "Make a personal access token" in problem

    def test_label_studio_is_down(self) -> None:
        fake, client, project = connected_fake()
        fake.faults.append(Fault("", "cut", times=99))
        [problem] = verify(client, project, "http://backend.example")
        assert "cannot be reached" in problem
        with pytest.raises(LabelStudioUnreachable):
            connect(client, project, "http://backend.example")

    @pytest.mark.parametrize("stumble", range(12))
    def test_interrupted_anywhere_it_goes_on(self, stumble: int) -> None:
        """The n-th request of connecting fails, after or before it took effect; connecting again makes it whole."""
        for what in ("cut", "lost"):
            fake, client, project = connected_fake()
            client = LabelStudio(fake.url, fake.legacy_token(), session=fake.session(), attempts=1)
            fake.faults += [Fault("", "", stumble), Fault("", what)]
            with pytest.raises(LabelStudioUnreachable):
                connect(client, project, "http://backend.example", basic_auth=BASIC)
            assert connect(client, project, "http://backend.example", basic_auth=BASIC).problems == ()
            assert [len(fake.backends), len(fake.webhooks), len(fake.views)] == [1, 1, 2]


class TestPlan:
    WANTED = Wanted(1, "http://b.example", "LPLgrad", BASIC, None, None)

    def test_no_secret_shows_in_a_repr(self) -> None:
        state = State({"id": 1}, (), (), (), {})
        steps = plan(state, self.WANTED)
        assert steps
        assert BASIC[1] not in repr((self.WANTED, steps))

    def test_extra_params_are_kept_unless_given(self) -> None:
        _, client, project = connected_fake()
        connect(client, project, "http://b.example", extra_params={"control": "kind"})
        assert connect(client, project, "http://b.example") == Report((), ())
        connect(client, project, "http://b.example", extra_params={"control": "other"})
        assert client.ml_backends(project)[0]["extra_params"] == {"control": "other"}

    @pytest.mark.parametrize(
        ("address", "dotted"),
        [
            ("http://localhost:9090", True),
            ("http://127.0.0.1:9090", True),
            ("http://[::1]:9090", True),
            ("http://backend.example", True),
            ("http://backend:9090", False),
            ("http://backend.:9090", False),
        ],
    )
    def test_which_hosts_get_a_webhook(self, address: str, dotted: bool) -> None:
        assert is_dotted(address) == dotted
