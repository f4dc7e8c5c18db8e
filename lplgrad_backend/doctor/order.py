"""What the doctor says of a project's tasks, images and order. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from lplgrad_backend.connection.plan import State
from lplgrad_backend.doctor.finding import Finding, failed, ok, skipped
from lplgrad_backend.doctor.reading import ProjectReading, Scored
from lplgrad_backend.doctor.wiring import command
from lplgrad_backend.errors import LabelConfigError
from lplgrad_backend.first_queue import said_of
from lplgrad_backend.labeling import Labeling
from lplgrad_backend.publication import LAST_IN_LINE, SAMPLING
from lplgrad_backend.settings import Settings

SAME = 1e-6  # scores travel as decimal text


def order_findings(settings: Settings, reading: ProjectReading, state: State) -> Iterator[Finding]:
    """Label config, images, last round, sampling, version, predictions, next task."""
    yield _label_config(reading)
    yield from _images(reading)
    yield _round(reading)
    yield _sampling(reading, state)
    yield _version(reading, state)
    ready = reading.served is not None and state.project.get("model_version") == reading.served.version
    if reading.scored is None or not ready:
        why = "needs the model version above" if reading.served else "needs a first round"
        yield skipped("predictions", why, reading.project)
        yield skipped("next task", why, reading.project)
        return
    yield _predictions(settings, reading, reading.scored)
    yield _next(reading, state, reading.scored)


def _label_config(reading: ProjectReading) -> Finding:
    hop, project = "label config", reading.project
    if isinstance(reading.labeling, LabelConfigError):
        return failed(hop, f"{reading.labeling} Change it under Settings > Labeling Interface.", project)
    if not isinstance(reading.labeling, Labeling):
        return skipped(hop, "needs the project", project)
    return ok(hop, f"{len(reading.labeling.classes)} classes of {reading.labeling.from_name!r}", project)


def _images(reading: ProjectReading) -> Iterator[Finding]:
    if not reading.images:
        yield skipped("images", "no unlabelled task with a usable label config", reading.project)
    for kind, image in reading.images.items():
        hop = f"images: {kind}"
        if image.error is not None:
            yield failed(hop, f"task {image.task}: {image.error} {_remedy(kind, str(image.error))}", reading.project)
        else:
            yield ok(hop, f"task {image.task} downloads and decodes", reading.project)


def _remedy(kind: str, said: str) -> str:
    if "private" in said or "loopback" in said:
        return "Set LPLGRAD_ALLOW_PRIVATE_IMAGES=true if that network is yours."
    if kind == "local files":
        return (
            "Start Label Studio with LOCAL_FILES_SERVING_ENABLED=true and LOCAL_FILES_DOCUMENT_ROOT, and add the folder "
            "under Settings > Cloud Storage > Add Source Storage."
        )
    if kind in ("s3", "gs", "azure-blob"):
        return "Check the storage under Settings > Cloud Storage > Check Connection."
    if kind == "upload":
        return "Upload it again if it is gone; if others work, delete this task."
    return "Correct the address in the task's data."


def _round(reading: ProjectReading) -> Finding:
    hop, project, status = "rounds", reading.project, reading.status
    if status.last_error is not None:
        return failed(hop, f"the last look ended with: {status.last_error}", project)
    if status.busy:
        return ok(hop, f"one runs: {status.phase.value}, {status.done} of {status.total}", project)
    return ok(hop, f"next: {status.due}", project)


def _sampling(reading: ProjectReading, state: State) -> Finding:
    found = state.project.get("sampling")
    if found == SAMPLING:
        return ok("sampling", str(found), reading.project)
    says = f"is {found!r}, so tasks come in another order than that of scores. Run: {command(reading)}"
    return failed("sampling", says, reading.project)


def _version(reading: ProjectReading, state: State) -> Finding:
    hop, project, found = "model version", reading.project, state.project.get("model_version")
    if reading.served is None:
        first = reading.status.cold_start
        said = f" {said_of(first)}" if first is not None and found == first.version else ""
        return ok(hop, f"no version yet: label images of two classes.{said}", project)
    if found == reading.served.version:
        return ok(hop, str(found), project)
    return failed(
        hop,
        f"the project serves by {found or 'none'!r}, but the newest published is {reading.served.version}, so the order "
        f"is lost. Run: {command(reading)}",
        project,
    )


def _predictions(settings: Settings, reading: ProjectReading, scored: Scored) -> Finding:
    hop, project = "predictions", reading.project
    scores = {task: score for task, score in scored.scores.items() if score is not None}
    lacking = sorted(scored.scores.keys() - scores.keys())
    left_out = max(0, len(scored.scores) - settings.pool_limit)  # beyond the pool's limit, by intention
    if len(lacking) > left_out:
        return failed(
            hop,
            f"{len(lacking)} of {len(scored.scores)} unlabelled tasks have none, among them {lacking[:3]}. The worker adds "
            f"them within {settings.sweep_seconds} s; for a new round now: Settings > Model > Start Training.",
            project,
        )
    odd = _not_as_published(reading, scores)
    if odd:
        return failed(
            hop,
            f"{len(odd)} have another score than was published, among them task {odd[0]}. "
            "For a new version: Settings > Model > Start Training.",
            project,
        )
    tied = _tied(scores)
    if tied:
        return failed(
            hop,
            f"{len(tied)} have the same score as another, so which comes first is arbitrary, among them task {tied[0]}. "
            "For a new order: Settings > Model > Start Training.",
            project,
        )
    return ok(hop, f"{len(scores)} unlabelled tasks have a score, all different", project)


def _tied(scores: Mapping[int, float]) -> list[int]:
    """Tasks whose score another one has; those whose image cannot be read share the last place."""
    times = Counter(score for score in scores.values() if score < LAST_IN_LINE)
    return sorted(task for task, score in scores.items() if times[score] > 1)


def _not_as_published(reading: ProjectReading, scores: Mapping[int, float]) -> list[int]:
    if reading.published is None:
        return []
    known = dict(zip(reading.published.tasks.tolist(), reading.published.scores.tolist(), strict=True))
    return [task for task, score in scores.items() if task in known and abs(known[task] - score) > SAME]


def _next(reading: ProjectReading, state: State, scored: Scored) -> Finding:
    hop, project = "next task", reading.project
    scores = {task: score for task, score in scored.scores.items() if score is not None}
    if not scores:
        return ok(hop, "none: every task is labelled", project)
    if state.project.get("sampling") != SAMPLING:
        return failed(hop, "is not chosen by score while sampling is what it is; see above", project)
    lowest = min(scores.values())
    if scored.first is None or scores.get(scored.first, 2.0) > lowest + SAME:
        says = f"Label Studio puts task {scored.first} first, which has not the lowest score. Run: {command(reading)}"
        return failed(hop, says, project)
    return ok(hop, f"task {scored.first} with the lowest score, {lowest:.3f} (who was handed a task keeps it)", project)
