"""Label Studio's endpoints: what it sends, what is wrong with what others send, who is let in."""

from __future__ import annotations

import ast
import base64
import inspect
from pathlib import Path
from typing import Any

import pytest
from falcon import testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from versions import save_version

from lplgrad_backend import api
from lplgrad_backend.api import create_app
from lplgrad_backend.connection.plan import Wanted
from lplgrad_backend.jobs import memory_queue
from lplgrad_backend.service import Service, build_service
from lplgrad_backend.settings import read_settings
from lplgrad_backend.status import Mark

CONFIG = """<View><Image name="image" value="$image"/><Choices name="kind" toName="image">
<Choice value="cat"/><Choice value="dog"/></Choices></View>"""

ROUTES = (
    "/", "/health", "/setup", "/predict", "/webhook", "/train", "/versions", "/metrics", "/projects/3",
    "/projects/3/images/1", "/api/status", "/api/projects/3", "/static/page.js", "/nothing", "/openapi.json",
)  # fmt: skip


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return build_service(read_settings({"MODEL_DIR": str(tmp_path / "models")}, None), memory_queue())


@pytest.fixture
def client(service: Service) -> testing.TestClient:
    return testing.TestClient(create_app(service))


def setup_body(**changes: Any) -> dict[str, Any]:
    return {
        "project": "3.1795340157", "schema": CONFIG, "hostname": "http://localhost:8080", "access_token": "t",
        "extra_params": None,
    } | changes  # fmt: skip


def predict_body(**changes: Any) -> dict[str, Any]:
    task = {"id": 10, "data": {"image": "/data/upload/2/a.png"}, "annotations": [], "predictions": []}
    params = {"login": None, "password": None, "context": None}
    return {"tasks": [task], "project": "3.1795340157", "label_config": CONFIG, "params": params} | changes


@pytest.mark.parametrize("path", ["/", "/health", "/health/"])
def test_health(client: testing.TestClient, path: str) -> None:
    answer = client.simulate_get(path)
    assert answer.status_code == 200
    assert answer.json == {"status": "UP"}


def test_setup_answers_the_version_and_makes_the_project_known(client: testing.TestClient, service: Service) -> None:
    assert client.simulate_post("/setup", json=setup_body()).json == {"model_version": "untrained"}
    assert service.store.projects() == [3]
    assert service.jobs.waiting() == [3]
    save_version(service.store, 3, "v4")
    assert client.simulate_post("/setup", json=setup_body()).json == {"model_version": "v4"}


@pytest.mark.parametrize("extra", ["", None, "kind", '{"control": "kind"}', {"control": "kind"}])
def test_setup_takes_extra_params_in_every_form(client: testing.TestClient, service: Service, extra: object) -> None:
    assert client.simulate_post("/setup", json=setup_body(extra_params=extra)).status_code == 200
    assert service.statuses.control(3) == ("kind" if extra else None)


def test_setup_refuses_what_cannot_be_learned_with_a_sentence(client: testing.TestClient) -> None:
    answer = client.simulate_post("/setup", json=setup_body(schema='<View><Text name="t" value="$t"/></View>'))
    assert answer.status_code == 400
    assert "Image" in answer.json["error"]


def test_predict_answers_one_result_per_task(client: testing.TestClient) -> None:
    body = predict_body(tasks=[{"id": i, "data": {"image": f"/{i}.png"}} for i in range(250)])
    results = client.simulate_post("/predict", json=body).json["results"]
    assert results == [{"result": [], "score": 0.5, "model_version": "untrained"}] * 250


def test_predict_without_tasks_is_empty(client: testing.TestClient) -> None:
    assert client.simulate_post("/predict", json=predict_body(tasks=[])).json["results"] == []


def test_webhook_rings_the_bell(client: testing.TestClient, service: Service) -> None:
    body = {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 1}], "project": {"id": 3, "title": "x"}}
    assert client.simulate_post("/webhook", json=body).status_code == 201
    assert service.jobs.waiting() == [3]
    assert set(service.statuses.marks(3)) == {Mark.ANNOTATIONS, Mark.TASKS}


def test_train_of_older_label_studio_asks_for_a_round(client: testing.TestClient, service: Service) -> None:
    answer = client.simulate_post("/train", json={"project": "3.1", "annotations": [], "label_config": CONFIG})
    assert answer.status_code == 201
    assert set(service.statuses.marks(3)) == {Mark.ROUND}


def test_versions(client: testing.TestClient, service: Service) -> None:
    for version in ("v2", "v10"):
        save_version(service.store, 3, version)
    save_version(service.store, 4, "v1")
    assert client.simulate_get("/versions").json == {"versions": ["v1", "v2", "v10"]}
    assert client.simulate_get("/versions", params={"project": "3.1795"}).json == {"versions": ["v2", "v10"]}
    assert client.simulate_post("/versions", json={"project": "4.1"}).json == {"versions": ["v1"]}


def test_metrics_show_requests_and_projects(client: testing.TestClient, service: Service) -> None:
    save_version(service.store, 3, "v2")
    client.simulate_get("/health")
    text = client.simulate_get("/metrics").text
    assert 'lplgrad_version{project="3"} 2.0' in text
    assert 'lplgrad_requests_total{endpoint="health",status="200"} 1.0' in text
    assert 'lplgrad_labels{class="cat",project="3"} 1.0' in text


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("/setup", setup_body(project="three"), "project"),
        ("/setup", setup_body(project=None), "project"),
        ("/setup", setup_body(schema=7), "schema"),
        ("/setup", {"project": 3}, "schema"),
        ("/setup", setup_body(schema="<View>"), "label config"),
        ("/predict", predict_body(tasks="all"), "tasks"),
        ("/predict", predict_body(tasks=[7]), "tasks.0"),
        ("/predict", predict_body(tasks=[{"id": 1}]), "tasks.0.data"),
        ("/predict", predict_body(tasks=[{"id": "x", "data": {}}]), "tasks.0.id"),
        ("/predict", {"tasks": [], "project": 1}, "label_config"),
        ("/webhook", {"project": {"id": 1}}, "action"),
        ("/webhook", {"action": "ANNOTATION_CREATED"}, "project"),
        ("/webhook", {"action": "ANNOTATION_CREATED", "project": {}}, "project"),
        ("/webhook", {"action": "COFFEE_MADE", "project": {"id": 1}}, "COFFEE_MADE"),
        ("/train", [], "body"),
        ("/versions", "x", "body"),
    ],
)
def test_a_wrong_body_is_answered_400_naming_the_field(
    client: testing.TestClient, path: str, body: Any, word: str
) -> None:
    answer = client.simulate_post(path, json=body)
    assert answer.status_code == 400
    assert word.lower() in answer.json["error"].lower()
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("path", ["/setup", "/predict", "/webhook", "/train", "/versions"])
@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"null", b"NaN", b"[" * 100_000])
def test_malformed_json_is_answered_4xx(client: testing.TestClient, path: str, body: bytes) -> None:
    answer = client.simulate_post(path, body=body, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert answer.json["error"]


def test_a_body_of_another_type_is_refused(client: testing.TestClient) -> None:
    answer = client.simulate_post("/webhook", body=b"<x/>", headers={"Content-Type": "text/xml"})
    assert answer.status_code == 415


def test_an_oversized_body_is_refused_before_it_is_read(client: testing.TestClient) -> None:
    answer = client.simulate_post("/predict", body=b"{}", headers={"Content-Length": str(100 * 2**20)})
    assert answer.status_code == 413


def test_unknown_paths_and_methods(client: testing.TestClient) -> None:
    assert client.simulate_get("/nothing").status_code == 404
    assert client.simulate_get("/predict").status_code == 405
    assert client.simulate_post("/health").status_code == 405


def test_a_versions_query_for_no_project_is_refused(client: testing.TestClient) -> None:
    assert client.simulate_get("/versions", params={"project": "../etc"}).status_code == 400


def test_a_refusing_disk_is_answered_503(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")
    service = build_service(read_settings({"MODEL_DIR": str(tmp_path / "models")}, None), memory_queue())
    answer = testing.TestClient(create_app(service)).simulate_post("/setup", json=setup_body())
    assert answer.status_code == 503
    assert "MODEL_DIR" in answer.json["error"]


class TestBasicAuth:
    """With a user and a password set."""

    @pytest.fixture
    def client(self, tmp_path: Path) -> testing.TestClient:
        environ = {"MODEL_DIR": str(tmp_path), "BASIC_AUTH_USER": "ann", "BASIC_AUTH_PASS": "pä:ss"}
        return testing.TestClient(create_app(build_service(read_settings(environ, None), memory_queue())))

    def header(self, pair: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}

    @pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
    def test_no_path_and_no_method_is_open(self, client: testing.TestClient, method: str) -> None:
        for path in ROUTES:
            answer = client.simulate_request(method, path)
            assert answer.status_code == (401 if path != "/health" else {"GET": 200, "OPTIONS": 200}.get(method, 405))

    @pytest.mark.parametrize(
        "path", ["/health/x", "//health", "/Health", "/health;x", "/x/../health", "/health%2f..%2fmetrics"]
    )
    def test_what_only_looks_like_health_is_closed(self, client: testing.TestClient, path: str) -> None:
        assert client.simulate_get(path).status_code == 401

    def test_a_webhook_is_let_in_by_its_own_header_alone(self, tmp_path: Path) -> None:
        environ = {"MODEL_DIR": str(tmp_path), "BASIC_AUTH_USER": "ann", "BASIC_AUTH_PASS": "pä:ss"}
        service = build_service(read_settings(environ, None), memory_queue())
        client = testing.TestClient(create_app(service))
        wanted = Wanted(3, "http://b.test", "LPLgrad", service.settings.basic_auth, None, None)
        body = {"action": "ANNOTATION_CREATED", "project": {"id": 3}}
        assert client.simulate_post("/webhook", json=body).status_code == 401
        assert service.jobs.waiting() == []
        assert client.simulate_post("/webhook", json=body, headers=wanted.headers).status_code == 201
        assert service.jobs.waiting() == [3]

    @pytest.mark.parametrize(
        "given",
        [
            "",
            "Basic",
            "Basic ",
            "Basic !",
            "Basic " + "A" * 5000,
            "ann:pä:ss",
            "Digest YW5uOnDDpDpzcw==",
            "YW5uOnDDpDpzcw==",
        ],
    )
    def test_other_headers_are_refused(self, client: testing.TestClient, given: str) -> None:
        assert (
            client.simulate_get("/versions", headers={"Authorization": given.encode().decode("latin-1")}).status_code
            == 401
        )

    def test_digests_are_compared_in_constant_time_and_nothing_else_is(self) -> None:
        tree = ast.parse(inspect.getsource(api._is_let_in))
        called = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert called.count("hmac.compare_digest") == 1
        compared = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Compare)]
        assert compared == ["scheme.lower() == 'basic'"]

    @pytest.mark.parametrize("path", ["/", "/metrics", "/versions", "/nothing"])
    def test_everything_but_health_needs_it(self, client: testing.TestClient, path: str) -> None:
        answer = client.simulate_get(path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Basic")
        assert client.simulate_get(path, headers=self.header("ann:wrong")).status_code == 401
        assert client.simulate_get(path, headers={"Authorization": "Bearer x"}).status_code == 401
        assert client.simulate_get(path, headers=self.header("ann:pä:ss")).status_code in (200, 404)

    def test_health_is_open(self, client: testing.TestClient) -> None:
        assert client.simulate_get("/health").status_code == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    path=st.sampled_from(["/setup", "/predict", "/webhook", "/train", "/versions"]), values=st.lists(JSON, max_size=5)
)
def test_no_body_is_answered_5xx(client: testing.TestClient, path: str, values: list[Any]) -> None:
    fields = ["project", "tasks", "label_config", "schema", "action"]
    for body in (dict(zip(fields, values, strict=False)), values):
        answer = client.simulate_post(path, json=body)
        assert answer.status_code < 500, answer.text
