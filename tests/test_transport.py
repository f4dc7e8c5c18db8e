"""The client when something goes wrong: faults of every kind, both kinds of token, and where a token may go."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from fake_label_studio import LABEL_CONFIG, FakeLabelStudio, Fault, WSGIAdapter
from hypothesis import given
from hypothesis import strategies as st
from sites import row

from lplgrad_backend.errors import LabelStudioError, LabelStudioRefused, LabelStudioUnreachable, SettingsError
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.labelstudio.transport import is_loopback

IMPORT = "POST /api/projects/.*/import/predictions"


class Waits(list[float]):
    """Stands in for sleeping."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.fixture
def fake() -> FakeLabelStudio:
    return FakeLabelStudio()


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def client(fake: FakeLabelStudio, waits: Waits) -> LabelStudio:
    return LabelStudio(fake.url, fake.legacy_token(), session=fake.session(), pause=waits)


@pytest.fixture
def project(fake: FakeLabelStudio) -> int:
    """With 10 tasks."""
    number = int(fake.add_project("Images", LABEL_CONFIG)["id"])
    fake.import_tasks(number, [{"data": {"image": f"{n}.png"}} for n in range(10)])
    return number


class TestFaults:
    @pytest.mark.parametrize("what", [429, 500, 502, 503, 504, "hang", "cut"])
    def test_what_changes_nothing_twice_is_tried_again(
        self, fake: FakeLabelStudio, client: LabelStudio, waits: Waits, project: int, what: int | str
    ) -> None:
        fake.faults.append(Fault("/api/projects", what, times=3))
        assert client.project(project)["id"] == project
        assert waits == [0.5, 1.0, 2.0]
        fake.faults.append(Fault("PATCH /api/projects", what, times=2))
        client.update_project(project, sampling="Uncertainty sampling")
        assert fake.projects[project]["sampling"] == "Uncertainty sampling"

    @pytest.mark.parametrize(
        ("what", "kind"), [(500, LabelStudioError), (429, LabelStudioError), ("cut", LabelStudioUnreachable)]
    )
    def test_it_ends(
        self, fake: FakeLabelStudio, client: LabelStudio, what: int | str, kind: type[LabelStudioError], project: int
    ) -> None:
        fake.faults.append(Fault("", what, times=99))
        with pytest.raises(kind, match=f"GET /api/projects/{project}/"):
            client.project(project)
        assert len(fake.asked) == 4

    @pytest.mark.parametrize("status", [400, 401, 403, 404])
    def test_a_refusal_is_not_repeated(
        self, fake: FakeLabelStudio, client: LabelStudio, status: int, project: int
    ) -> None:
        fake.faults.append(Fault("", status))
        with pytest.raises(LabelStudioError) as caught:
            client.project(project)
        assert caught.value.status == status
        assert len(fake.asked) == 1

    def test_it_waits_as_long_as_it_is_asked_to(
        self, fake: FakeLabelStudio, client: LabelStudio, waits: Waits, project: int
    ) -> None:
        for asked in ("7", "99999", "Wed, 21 Oct 2026 07:28:00 GMT"):
            fake.faults.append(Fault("", 429, headers=(("Retry-After", asked),)))
        client.project(project)
        assert waits == [7.0, 60.0, 2.0]

    def test_a_creation_is_not_repeated(self, fake: FakeLabelStudio, client: LabelStudio, project: int) -> None:
        fake.faults.append(Fault("POST /api/webhooks", "lost"))
        with pytest.raises(LabelStudioUnreachable):
            client.add_webhook({"project": project, "url": "http://a.test"})
        assert len(client.webhooks(project)) == 1

    def test_deleting_what_a_lost_answer_deleted_is_no_error(
        self, fake: FakeLabelStudio, client: LabelStudio, project: int
    ) -> None:
        client.add_webhook({"project": project, "url": "http://a.test"})
        fake.faults += [Fault("DELETE", "lost"), Fault("DELETE", 404)]
        client.delete_webhook(client.webhooks(project)[0]["id"])
        assert client.webhooks(project) == []

    @pytest.mark.parametrize("what", ["lost", "cut", "hang", 500, 502, 429])
    @pytest.mark.parametrize("times", [1, 3])
    def test_a_push_arrives_exactly_once(
        self, fake: FakeLabelStudio, client: LabelStudio, project: int, what: int | str, times: int
    ) -> None:
        tasks = [task for task, _ in client.unlabelled_tasks(project)]
        fake.faults.append(Fault(IMPORT, what, times))
        client.push_predictions(project, [row(task) for task in tasks])
        assert sorted(p["task"] for p in fake.predictions.values()) == tasks

    def test_a_push_gives_up(self, fake: FakeLabelStudio, client: LabelStudio, project: int) -> None:
        fake.faults.append(Fault(IMPORT, 500, times=99))
        with pytest.raises(LabelStudioError, match="import/predictions: status 500"):
            client.push_predictions(project, [row(task) for task, _ in client.unlabelled_tasks(project)])
        assert sum("import/predictions" in asked.path for asked in fake.asked) == 4

    def test_a_refused_push_is_not_repeated(self, fake: FakeLabelStudio, client: LabelStudio, project: int) -> None:
        fake.faults.append(Fault(IMPORT, 400, times=99))
        with pytest.raises(LabelStudioError, match="status 400"):
            client.push_predictions(project, [row(task) for task, _ in client.unlabelled_tasks(project)])
        assert sum("import/predictions" in asked.path for asked in fake.asked) == 1

    def test_fewer_created_than_sent_is_an_error(
        self, fake: FakeLabelStudio, client: LabelStudio, project: int
    ) -> None:
        fake.faults.append(Fault(IMPORT, "short"))
        tasks = [task for task, _ in client.unlabelled_tasks(project)]
        with pytest.raises(LabelStudioError, match=rf"1 of 10 predictions were dropped, of tasks \[{tasks[-1]}\]"):
            client.push_predictions(project, [row(task) for task in tasks])
        client.push_predictions(project, [row(task) for task, _ in client.unlabelled_tasks(project, "v1")])
        assert client.model_versions(project) == {"v1": 10}

    def test_another_page_than_the_api_is_said(self, waits: Waits) -> None:
        def page(environ: Any, start_response: Callable[..., object]) -> list[bytes]:
            start_response("200 OK", [])
            return [b"<html>Welcome</html>"]

        with pytest.raises(LabelStudioError, match=r"not JSON\. Is LABEL_STUDIO_URL"):
            reaching(page, waits).user()

    def test_a_redirect_of_the_api_is_said_and_not_followed(self, waits: Waits) -> None:
        def moved(environ: Any, start_response: Callable[..., object]) -> list[bytes]:
            start_response("301 Moved", [("Location", "https://new.test/api/")])
            return [b""]

        with pytest.raises(LabelStudioError, match=r"redirects to https://new\.test"):
            reaching(moved, waits).user()


def reaching(application: Callable[..., Iterable[bytes]], waits: Waits) -> LabelStudio:
    session = requests.Session()
    session.mount("http://", WSGIAdapter(application))
    return LabelStudio("http://ls.test", "f" * 40, session=session, pause=waits)


class TestPersonalAccessTokens:
    @pytest.fixture
    def now(self) -> list[float]:
        return [0.0]

    @pytest.fixture
    def fake(self, now: list[float]) -> FakeLabelStudio:
        fake = FakeLabelStudio(clock=lambda: now[0])
        fake.legacy_tokens_allowed = False
        return fake

    @pytest.fixture
    def client(self, fake: FakeLabelStudio, waits: Waits) -> LabelStudio:
        return LabelStudio(fake.url, fake.personal_token(), session=fake.session(), pause=waits)

    def exchanges(self, fake: FakeLabelStudio) -> int:
        return sum(asked.path == "/api/token/refresh/" for asked in fake.asked)

    def test_one_is_exchanged_once(self, fake: FakeLabelStudio, client: LabelStudio) -> None:
        assert [client.user()["email"] for _ in range(3)] == ["me@example.com"] * 3
        assert self.exchanges(fake) == 1

    def test_an_access_token_that_ran_out_is_renewed(
        self, fake: FakeLabelStudio, client: LabelStudio, now: list[float]
    ) -> None:
        client.user()
        now[0] = 301.0
        client.user()
        assert self.exchanges(fake) == 2

    @pytest.mark.parametrize("what", [500, "cut"])
    def test_the_exchange_is_tried_again(self, fake: FakeLabelStudio, client: LabelStudio, what: int | str) -> None:
        fake.faults.append(Fault("token/refresh", what, times=3))
        assert client.user()["email"] == "me@example.com"

    def test_a_revoked_one_is_refused(self, fake: FakeLabelStudio, waits: Waits) -> None:
        client = LabelStudio(fake.url, fake.personal_token() + "00", session=fake.session(), pause=waits)
        with pytest.raises(LabelStudioRefused, match="Token is invalid"):
            client.user()

    def test_a_disabled_legacy_token_says_what_to_make_instead(self, fake: FakeLabelStudio, waits: Waits) -> None:
        client = LabelStudio(fake.url, fake.legacy_token(), session=fake.session(), pause=waits)
        with pytest.raises(LabelStudioRefused, match="Make a personal access token under Account & Settings"):
            client.user()


class Elsewhere:
    """Another host, which notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterator[bytes]:
        self.asked.append(environ)
        start_response("200 OK", [])
        yield b"bytes of a bucket"


class TestWhereTheTokenGoes:
    @pytest.mark.parametrize(
        "target", ["http://bucket.test/x?signature=s", "https://label-studio.test/x", "//b.test/x"]
    )
    def test_not_along_a_redirect(self, fake: FakeLabelStudio, target: str, waits: Waits) -> None:
        session, elsewhere = fake.session(), Elsewhere()
        for address in ("http://bucket.test", "https://label-studio.test", "http://b.test"):
            session.mount(address, WSGIAdapter(elsewhere))
        fake.redirects["/tasks/1/resolve"] = target
        client = LabelStudio(fake.url, fake.legacy_token(), session=session, pause=waits)
        assert client.download("/tasks/1/resolve/?fileuri=czM6", 100) == b"bytes of a bucket"
        assert "HTTP_AUTHORIZATION" not in elsewhere.asked[0]
        assert "HTTP_COOKIE" not in elsewhere.asked[0]

    def test_another_host_may_be_left_to_the_caller(self, fake: FakeLabelStudio, client: LabelStudio) -> None:
        fake.redirects["/tasks/1/resolve"] = "http://bucket.test/x"
        found = client.download("/tasks/1/resolve/", 9, elsewhere=lambda url, limit: f"{url} {limit}".encode())
        assert found == b"http://bucket.test/x 9"

    def test_a_redirect_on_its_own_host_keeps_it(self, fake: FakeLabelStudio, client: LabelStudio) -> None:
        fake.redirects["/tasks/1/resolve"] = "/data/upload/1/a.png"
        fake.uploads["/data/upload/1/a.png"] = b"image"
        assert client.download("/tasks/1/resolve/", 9) == b"image"
        fake.redirects["/round"] = "/round"
        with pytest.raises(LabelStudioError, match="more than 5 redirects"):
            client.download("/round", 9)

    @given(
        path=st.text("@:/\\.?#%abc0", max_size=12).map(lambda text: text + "evil.test/x")
        | st.sampled_from(
            ["//evil.test/x", "/\\evil.test", "http://evil.test/", "@evil.test/", ".evil.test/", ":1@e.test/"]
        )
    )
    def test_no_path_leads_to_another_host(self, path: str) -> None:
        asked, own = Elsewhere(), FakeLabelStudio()
        session = requests.Session()
        session.mount("http", WSGIAdapter(asked))
        session.mount("http://label-studio.test/", WSGIAdapter(own))
        client = LabelStudio(own.url, own.legacy_token(), session=session, attempts=1)
        with pytest.raises(LabelStudioError):
            client.download(path, 100)
        assert asked.asked == []

    def test_a_netrc_entry_does_not_replace_it(
        self, fake: FakeLabelStudio, client: LabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "netrc").write_text("machine label-studio.test login other password other\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        assert client.user()["email"] == "me@example.com"

    @pytest.mark.parametrize(
        ("host", "expected"),
        [("localhost", True), ("127.0.0.2", True), ("::1", True), ("10.0.0.1", False), ("ls", False)],
    )
    def test_proxies_are_not_asked_for_this_machine(self, host: str, expected: bool) -> None:
        assert is_loopback(host) == expected
        session = requests.Session()
        LabelStudio(f"http://[{host}]:1" if ":" in host else f"http://{host}:1", "f" * 40, session=session)
        assert session.trust_env != expected

    @pytest.mark.parametrize("token", ["", "  ", "two words", "é", "a\nb", "a\x00"])
    def test_what_cannot_be_a_token_is_refused_and_not_repeated(self, token: str) -> None:
        with pytest.raises(SettingsError) as caught:
            LabelStudio("http://ls.test", token)
        assert not token.strip() or token not in str(caught.value)

    def test_no_message_shows_it(self, fake: FakeLabelStudio, waits: Waits) -> None:
        for token in (fake.legacy_token(), fake.personal_token()):
            client = LabelStudio(fake.url, f" {token}\n", session=fake.session(), pause=waits)
            assert token not in repr(client)
            for what in (400, 401, 403, 404, 500, "hang", "cut"):
                fake.faults = [Fault("/api/", what, times=9)]
                with pytest.raises(LabelStudioError) as caught:
                    client.project(1)
                assert token not in "".join(traceback.format_exception(caught.value))
            fake.faults = []


def test_two_users_are_served_different_tasks(fake: FakeLabelStudio, project: int, client: LabelStudio) -> None:
    other = LabelStudio(fake.url, fake.legacy_token("other@example.com"), session=fake.session())
    tasks = [task for task, _ in client.unlabelled_tasks(project)]
    random.Random(0).shuffle(tasks)
    client.push_predictions(project, [row(task, place / 10) for place, task in enumerate(tasks)])
    client.update_project(project, sampling="Uncertainty sampling", model_version="v1")
    served = [asking.next_task(project) for asking in (client, other, client)]
    assert [task["id"] for task in served if task] == [tasks[0], tasks[1], tasks[0]]


def test_over_a_socket(fake: FakeLabelStudio, waits: Waits, project: int) -> None:
    with fake.serving() as url:
        client = LabelStudio(url, fake.legacy_token(), pause=waits, timeout=0.2)
        rows = [row(task) for task, _ in client.unlabelled_tasks(project)]
        fake.faults += [Fault(IMPORT, "cut"), Fault(IMPORT, "lost"), Fault("GET /api/projects", "hang", times=2)]
        client.push_predictions(project, rows)
        assert client.project(project)["total_predictions_number"] == 10
