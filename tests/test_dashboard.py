"""The status page: what it says, to whom, and that nothing in it can run."""

from __future__ import annotations

import io
import math
import shutil
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from dashboard_stage import CLASSES, EVIL, LABELING, PROJECT, SIDE, TASKS, status, training, write_project
from falcon import testing
from PIL import Image
from versions import pool_scores, save_version

from lplgrad_backend.api import create_app
from lplgrad_backend.dashboard.markup import element, join
from lplgrad_backend.dashboard.statistics import histogram, remaining_seconds, two_likeliest, wilson
from lplgrad_backend.history import History, read_history, with_version, write_history
from lplgrad_backend.jobs import memory_queue
from lplgrad_backend.locks import file_lock
from lplgrad_backend.served import roll_back
from lplgrad_backend.service import Service, build_service
from lplgrad_backend.settings import read_settings
from lplgrad_backend.status import ProjectStatus, now

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
PAGE = f"/projects/{PROJECT}"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_project(folder)
    return folder


@pytest.fixture
def service(tmp_path: Path, written: Path) -> Service:
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    environ = {"MODEL_DIR": str(tmp_path), "LABEL_STUDIO_URL": "http://inside:8080"}
    public = {"LABEL_STUDIO_PUBLIC_URL": "https://labels.example/ls/"}
    return build_service(read_settings(environ | public, None), memory_queue())


@pytest.fixture
def client(service: Service) -> testing.TestClient:
    return testing.TestClient(create_app(service))


class Seen(HTMLParser):
    """Tags with attributes, and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


# Who gets what


def test_a_person_gets_a_page_and_a_program_the_health(client: testing.TestClient) -> None:
    assert client.simulate_get("/", headers=HTML).headers["content-type"].startswith("text/html")
    for accept in ("*/*", "application/json", ""):
        assert client.simulate_get("/", headers={"Accept": accept}).json["status"] == "UP"


def test_pages_and_images_are_behind_the_same_authentication(tmp_path: Path) -> None:
    environ = {"MODEL_DIR": str(tmp_path), "BASIC_AUTH_USER": "ann", "BASIC_AUTH_PASS": "x"}
    client = testing.TestClient(create_app(build_service(read_settings(environ, None), memory_queue())))
    for path in ("/", PAGE, f"{PAGE}/images/1", "/api/status", f"/api{PAGE}", "/static/page.js"):
        assert client.simulate_get(path, headers=HTML).status_code == 401


@pytest.mark.parametrize("path", ["/projects/4", "/projects/x", "/projects/-1", "/api/projects/4", "/static/facts.py"])
def test_what_is_not_there_is_answered_4xx(client: testing.TestClient, path: str) -> None:
    assert 400 <= client.simulate_get(path, headers=HTML).status_code < 500


def test_without_projects_the_page_says_what_to_do(tmp_path: Path) -> None:
    service = build_service(read_settings({"MODEL_DIR": str(tmp_path)}, None), memory_queue())
    client = testing.TestClient(create_app(service))
    assert "Connect Model" in client.simulate_get("/", headers=HTML).text
    assert client.simulate_get("/api/status").json == {"worker_at_work": False, "projects": []}


def test_a_project_without_a_version_has_a_page(client: testing.TestClient, service: Service) -> None:
    service.statuses.remember(5, None)
    seen = Seen(client.simulate_get("/projects/5", headers=HTML).text)
    assert "not looked at yet" in seen.text
    assert client.simulate_get("/api/projects/5").json["version"] is None


def test_a_damaged_newest_version_is_passed_over(client: testing.TestClient, service: Service) -> None:
    save_version(service.store, PROJECT, "v9")
    (service.store.project_folder(PROJECT) / "v9/scores.safetensors").write_bytes(b"x")
    assert client.simulate_get(f"/api{PAGE}").json["version"] == "v6"


# What it says


def test_the_json_has_what_the_issue_lists(client: testing.TestClient) -> None:
    facts = client.simulate_get(f"/api{PAGE}").json
    assert facts["labels"] == {"cat": 31, "dog": 18, EVIL: 7, CLASSES[3]: 4}
    assert (facts["version"], facts["due"], facts["round"]) == ("v6", "4 more labels", None)
    assert [point["agreed"] for point in facts["curve"]] == [13, 16, 19, 22, 25, 0]
    assert facts["confusion"]["version"] == "v5"
    assert facts["confusion"]["counts"][2][3] == 5
    assert sum(facts["histogram"]) == len(TASKS)
    assert len(facts["uncertain"]) == 12
    first = facts["uncertain"][0]
    assert (first["task"], first["predicted"], first["runner_up"]) == (1, "cat", "dog")
    assert first["percentile"] == pytest.approx(100 * 59 / 60)
    assert first["link"] == f"https://labels.example/ls/projects/{PROJECT}/data?task=1"
    assert [one["task"] for one in facts["suspects"]] == [50, 51]
    assert client.simulate_get("/api/status").json["projects"] == [facts]


def test_the_json_says_how_the_version_was_made_and_what_an_image_is_worth_by_itself(
    client: testing.TestClient,
) -> None:
    facts = client.simulate_get(f"/api{PAGE}").json
    assert facts["making"] == {
        "recipe": "frozen: as set.", "ordered_by": "badge", "health": "margin ranks against its uncertainty.",
        "correlation": -0.2, "duplicates": 0.1, "temperature": 1.5,
        "temperature_from": "60 cross-fitted labelled images",
    }  # fmt: skip
    first, second = facts["uncertain"][:2]
    assert first["gradient_norm"] == pytest.approx(1 / first["score"] - 1)
    assert first["predicted_loss"] == 2.0
    assert (first["drawn"], second["drawn"]) == (False, True)


def test_active_is_compared_with_random(client: testing.TestClient, service: Service) -> None:
    found = client.simulate_get(f"/api{PAGE}").json["active_against_random"]
    assert found["versions"] == ["v1", "v5"]
    assert (found["drawn"]["labels"], found["drawn"]["agreed"], found["drawn"]["share"]) == (5, 4, 0.8)
    assert (found["drawn"]["low"], found["drawn"]["high"]) == wilson(4, 5)
    assert (found["chosen"]["labels"], found["chosen"]["agreed"]) == (45, 20)
    assert found["chosen"]["classes"] == {"cat": 20, "dog": 25}
    text = Seen(client.simulate_get(PAGE, headers=HTML).text).text
    for words in ("Accuracy 80% (", "from 5 images of v1 to v5", "44% (31% to 59%)", "frozen: as set."):
        assert words in text
    for words in ("badge", "margin ranks against its uncertainty.", "temperature 1.50", "predicted loss 2.00"):
        assert words in text
    write_history(service.store, PROJECT, History())
    text = Seen(client.simulate_get(PAGE, headers=HTML).text).text
    assert "Known once images are labelled that a version's queue has shown." in text


def test_a_version_of_a_release_that_kept_less_is_shown(client: testing.TestClient, service: Service) -> None:
    save_version(service.store, PROJECT, "v7", labeling=LABELING, tasks=TASKS)
    making = client.simulate_get(f"/api{PAGE}").json["making"]
    assert (making["recipe"], making["health"], making["correlation"]) == ("", None, None)
    text = Seen(client.simulate_get(PAGE, headers=HTML).text).text
    assert "not known" in text and "healthy" not in text


def test_the_page_says_the_same_in_words(client: testing.TestClient) -> None:
    text = Seen(client.simulate_get(PAGE, headers=HTML).text).text
    for words in ("4 more labels", "25 of 30", "83%", "a heron & its “young”", EVIL, "Task 50", "Last error"):
        assert words in text


def test_a_running_round_shows_phase_epoch_and_time_left(client: testing.TestClient, service: Service) -> None:
    service.statuses.write(training(epoch=5))
    with service.statuses.lock(PROJECT):
        seen = Seen(client.simulate_get(PAGE, headers=HTML).text)
        running = client.simulate_get(f"/api{PAGE}").json["round"]
    assert "Training, epoch 5 of 20, about 90 s left" in seen.text or "about 2 min left" in seen.text
    assert [bar["value"] for bar in seen.of("progress")] == ["0.250"]
    assert running["seconds_left"] == pytest.approx(90, abs=5)


def test_a_round_whose_process_was_killed_is_not_shown_as_running(client: testing.TestClient, service: Service) -> None:
    service.statuses.write(training(epoch=5))
    facts = client.simulate_get(f"/api{PAGE}").json
    assert (facts["round"], facts["interrupted"]) == (None, True)
    for path in ("/", PAGE):
        assert "was interrupted and begins anew" in client.simulate_get(path, headers=HTML).text


@pytest.mark.parametrize("path", ["/", PAGE])
def test_that_no_worker_is_there_is_said(client: testing.TestClient, service: Service, path: str) -> None:
    assert "No worker is at work" in client.simulate_get(path, headers=HTML).text
    with file_lock(service.settings.model_dir / "worker.lock"):
        assert "No worker is at work" not in client.simulate_get(path, headers=HTML).text


def test_a_version_held_back_is_explained_and_the_queue_is_that_of_the_one_served(
    client: testing.TestClient, service: Service
) -> None:
    before = client.simulate_get(f"/api{PAGE}").json
    why = "of 20 labelled images that neither trained on it names 9 right, v6 18 (p = 0.002)."
    swapped = [(task, uri) for task, uri in TASKS if task > 20]
    manifest = save_version(service.store, PROJECT, "v7", labeling=LABELING, tasks=swapped, held_back=why)
    known = read_history(service.store, PROJECT)
    write_history(service.store, PROJECT, with_version(known, manifest, pool_scores(swapped), dict(TASKS), (), SIDE))
    facts = client.simulate_get(f"/api{PAGE}").json
    assert (facts["version"], facts["served"]) == ("v7", "v6")
    assert facts["uncertain"] == before["uncertain"]
    text = Seen(client.simulate_get(PAGE, headers=HTML).text).text
    assert f"v7 is kept and not published: {why}" in text
    assert "kept; the queue is that of v6" in text
    assert client.simulate_get(f"{PAGE}/images/1").status_code == 200


def test_a_rollback_is_explained(client: testing.TestClient, service: Service) -> None:
    roll_back(service.store, PROJECT, "v4")
    facts = client.simulate_get(f"/api{PAGE}").json
    assert facts["served"] == "v4"
    assert facts["not_published"] == "v6 was rolled back to v4, until labels make the next round due."
    assert len(facts["uncertain"]) == 12


def test_an_unchanged_page_is_not_sent_again(client: testing.TestClient, service: Service) -> None:
    tag = client.simulate_get(PAGE, headers=HTML).headers["etag"]
    assert client.simulate_get(PAGE, headers=HTML | {"If-None-Match": tag}).status_code == 304
    service.statuses.write(training(epoch=6))
    assert client.simulate_get(PAGE, headers=HTML | {"If-None-Match": tag}).status_code == 200


def test_images_come_from_the_cache_in_their_own_proportions(client: testing.TestClient) -> None:
    answer = client.simulate_get(f"{PAGE}/images/1")
    assert Image.open(io.BytesIO(answer.content)).size == (32, 16)
    assert client.simulate_get(f"{PAGE}/images/60").status_code == 404  # not kept; it is not fetched for this
    assert client.simulate_get(f"{PAGE}/images/999").status_code == 404


# That nothing in it can run


@pytest.mark.parametrize("path", ["/", PAGE])
def test_no_label_title_or_error_becomes_markup(client: testing.TestClient, path: str) -> None:
    answer = client.simulate_get(path, headers=HTML)
    seen = Seen(answer.text)
    assert EVIL not in answer.text
    assert EVIL in seen.text
    assert all(set(image) <= {"src", "alt", "loading", "width", "height"} for image in seen.of("img"))
    for _, attributes in seen.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]


@pytest.mark.parametrize(
    "path",
    [
        "/static/../pages.py", "/static/..%2fpages.py", "/static/%2e%2e/pages.py", "/static/pages.py", "/static/",
        "/static//etc/passwd", "/static/page.js%00", "/projects/..%2f..%2fetc", "/projects/../1", "/projects/1%00",
        "/api/projects/..%2f1", "/api/projects/-1", "/projects/1/images/..%2f1", "/projects/1/images/-1",
    ],
)  # fmt: skip
def test_no_path_leads_out(client: testing.TestClient, path: str) -> None:
    answer = client.simulate_get(path, headers=HTML)
    assert answer.status_code in (400, 404), answer.text
    assert "import" not in answer.text


@pytest.mark.parametrize("path", ["/", PAGE, "/static/page.js", "/static/page.css", f"{PAGE}/images/1"])
def test_nothing_may_be_loaded_from_elsewhere(client: testing.TestClient, path: str) -> None:
    answer = client.simulate_get(path, headers=HTML)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert "set-cookie" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(("path", "root"), [("/", ""), (PAGE, "../"), (f"{PAGE}/", "../../")])
def test_addresses_are_relative_so_that_a_proxy_may_add_a_path(
    client: testing.TestClient, path: str, root: str
) -> None:
    seen = Seen(client.simulate_get(path, headers=HTML).text)
    assert [script["src"] for script in seen.of("script")] == [f"{root}static/page.js"]
    assert all((image["src"] or "").startswith(root) for image in seen.of("img"))


def test_markup_escapes_all_but_markup() -> None:
    assert element("a", "<b>", element("i", "&"), title='"x"') == '<a title="&quot;x&quot;">&lt;b&gt;<i>&amp;</i></a>'
    assert element("img", src="a", alt="") == '<img src="a" alt="">'
    assert join("<", None, element("b")) == "&lt;<b></b>"


# Numbers


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (7, 10), (91, 100), (1, 1)])
def test_wilsons_bounds_are_where_the_test_of_the_proportion_turns(successes: int, trials: int) -> None:
    share = successes / trials
    for bound in wilson(successes, trials):
        if 1e-9 < bound < 1 - 1e-9:
            assert abs(share - bound) / math.sqrt(bound * (1 - bound) / trials) == pytest.approx(1.959964, rel=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)


def test_every_score_is_in_the_histogram() -> None:
    assert sum(histogram(np.array([0.0, 0.049, 0.5, 1.0]))) == 4
    assert histogram(np.array([0.0, 0.049, 0.5, 1.0]))[0] == 2


def test_the_two_likeliest_classes() -> None:
    found = two_likeliest(np.array([0.2, 0.5, 0.3], np.float32), ["a", "b", "c"])
    assert [name for name, _ in found] == ["b", "c"]


def test_time_left_is_never_negative_and_unknown_without_a_clue() -> None:
    assert remaining_seconds(status(), now()) is None
    late = training(20)
    assert remaining_seconds(late, now() + timedelta(hours=1)) == 0.0
    bare = ProjectStatus(project=1, phase=late.phase)
    assert remaining_seconds(bare, now()) is None
