"""The hooks, called as both lines of Label Studio's ML library call them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from versions import save_version

from lplgrad_backend.backend import MARKS, LPLGradBackend
from lplgrad_backend.errors import LabelConfigError, RequestError
from lplgrad_backend.jobs import memory_queue
from lplgrad_backend.service import Service, build_service
from lplgrad_backend.settings import read_settings
from lplgrad_backend.status import Mark

CONFIG = """<View><Image name="image" value="$image"/><Choices name="kind" toName="image">
<Choice value="cat"/><Choice value="dog"/></Choices></View>"""
TASKS = [{"id": 1, "data": {"image": "/a.png"}, "project": 3}, {"id": 2, "data": {"image": "/b.png"}, "project": 3}]


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return build_service(read_settings({"MODEL_DIR": str(tmp_path)}, None), memory_queue())


def test_before_the_first_version_every_task_gets_an_empty_result(service: Service) -> None:
    backend = LPLGradBackend(project_id="3.1795340157", label_config=CONFIG, service=service)
    assert backend.model_version == "untrained"
    assert backend.predict(TASKS) == [{"result": [], "score": 0.5, "model_version": "untrained"}] * 2
    assert backend.predict([]) == []


def test_the_old_line_constructs_and_predicts(service: Service) -> None:
    backend = LPLGradBackend(label_config=CONFIG, train_output={}, hostname="h", access_token="t", service=service)
    assert len(backend.predict(TASKS, project="3.179", login=None)) == 2


def test_the_new_line_constructs_and_predicts(service: Service) -> None:
    backend = LPLGradBackend(project_id="3", label_config=CONFIG, service=service)
    assert len(backend.predict(TASKS, context=None, anything="else")) == 2
    assert backend.get("model_version") == "untrained"
    backend.set("extra_params", "kind")
    assert service.statuses.control(3) == "kind"


def test_the_old_line_fits(service: Service) -> None:
    data = {"project": {"id": 3, "label_config": CONFIG}, "annotation": {}}
    backend = LPLGradBackend(label_config=CONFIG, train_output=None, service=service)
    answer = backend.fit((), None, event="ANNOTATION_UPDATED", data=data, job_id="x", anything="else")
    assert answer == {"model_version": "untrained"}
    assert set(service.statuses.marks(3)) == {Mark.ANNOTATIONS}
    assert service.jobs.waiting() == [3]


def test_the_new_line_fits(service: Service) -> None:
    backend = LPLGradBackend(project_id="3", label_config=CONFIG, service=service)
    backend.fit("START_TRAINING", {"project": {"id": 3}})
    assert set(service.statuses.marks(3)) == {Mark.ROUND}


@pytest.mark.parametrize("event", MARKS)
def test_every_event_rings_the_bell(service: Service, event: str) -> None:
    LPLGradBackend(service=service).fit(event, {"project": {"id": 3}})
    assert service.jobs.waiting() == [3]
    assert set(service.statuses.marks(3)) == set(MARKS[event])


def test_an_update_that_changes_no_labels_rings_nothing(service: Service) -> None:
    save_version(service.store, 3, "v1")
    backend = LPLGradBackend(project_id=3, service=service)
    backend.fit("PROJECT_UPDATED", {"project": {"id": 3, "label_config": CONFIG}})
    assert service.jobs.waiting() == []
    backend.fit("PROJECT_UPDATED", {"project": {"id": 3, "label_config": CONFIG.replace("dog", "wolf")}})
    assert service.jobs.waiting() == [3]


def test_what_cannot_be_told_is_refused(service: Service) -> None:
    backend = LPLGradBackend(service=service)
    with pytest.raises(RequestError, match="project"):
        backend.fit("ANNOTATION_CREATED", {})
    with pytest.raises(RequestError, match="COFFEE_MADE"):
        backend.fit("COFFEE_MADE", {"project": {"id": 3}})
    with pytest.raises(LabelConfigError):
        LPLGradBackend(project_id=3, label_config="<View/>", service=service).predict(TASKS)


def test_it_works_on_a_base_class_of_the_new_line(tmp_path: Path) -> None:
    """2.x is not on the index: a stand-in with its properties and signatures takes the library's place."""
    program = Path(__file__).parent / "standins" / "use_new_line.py"
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{program.parent}:{root}", "MODEL_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["untrained", "0.5", "untrained"]
