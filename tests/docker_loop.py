"""`make docker-test`: the image is built, the containers are brought up, people label, containers stop and are killed.

    PYTHONPATH=.:tests/e2e .venv/bin/python tests/docker_loop.py [--stand-ins] [--weights FILE …] [SCENE …]

    loop      one machine with the default settings: two rounds in order, a stop in mid-round, and on it goes
    scale     Redis and two workers: a round is one worker's, and another finishes it when that one is killed
    weights   a local weights file baked in: every version starts from it

Needs Docker with Compose and some ten free gigabytes; takes half an hour. What it brings up it takes down; images stay.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import torchvision
from compose_stack import KILLED, ROOT, SECONDS_TO_START, Stack, StackError, docker
from digits_project import DigitsProject

from lplgrad_backend.demo.dataset import write_digits
from lplgrad_backend.demo.person import Person
from lplgrad_backend.demo.run import POOL_TITLE, SIDE
from lplgrad_backend.store import Store

PER_ROUND = 10  # START_TRAINING_EACH_N_UPDATES, as it is when nothing is set
GRACE = 60.0  # stop_grace_period of the backend's containers
TRAINER = "lplgrad_backend.trainer"
IMAGE, BAKED = "lplgrad-backend-test", "lplgrad-backend-test:weights"
STAND_INS = {
    "LABEL_STUDIO_IMAGE": ("lplgrad-test-label-studio", "lplgrad_backend/demo"),
    "REDIS_IMAGE": ("lplgrad-test-redis", "tests/standins"),
}
DOCKERFILES = {"LABEL_STUDIO_IMAGE": "label-studio.Dockerfile", "REDIS_IMAGE": "redis.Dockerfile"}
PASSED_ON = (*STAND_INS, "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")


def say(sentence: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {sentence}\n")
    sys.stdout.flush()


def make_sure(holds: bool, otherwise: str) -> None:
    if not holds:
        raise StackError(otherwise)


@dataclass(frozen=True)
class Options:
    """What the command line says. `images`: lines of docker/.env that choose images and package indexes."""

    images: Mapping[str, str]
    weights: Path | None
    backbone: str
    backbone_options: str
    pixels: str


@contextmanager
def brought_up(
    folder: Path, files: list[str], more: Mapping[str, str], *arguments: str, baked: Path | None = None
) -> Iterator[Stack]:
    """A stack with the demo's project, until the block ends. `baked`: a weights file for the build."""
    with Stack(folder, files, {"LPLGRAD_IMAGE": IMAGE, "LPLGRAD_DEMO": "true", **more}) as stack, stack.explained():
        if baked is not None:
            shutil.copy2(baked, folder / "docker" / "weights" / baked.name)
        started = time.monotonic()
        stack.compose("build", "web")
        say(f"built in {time.monotonic() - started:.0f} s")
        say(f"up in {stack.up(*arguments):.0f} s")
        yield stack


@contextmanager
def signed_in(stack: Stack) -> Iterator[DigitsProject]:
    """The demo's project, as its owner sees it."""
    with Person(stack.url, stack.email, stack.password) as person:
        digits = write_digits(stack.folder / "digits", pool=1000, held_out=0, side=SIDE)
        listed = person.call("GET", "/api/projects/?page_size=100")["results"]
        [number] = [row["id"] for row in listed if row["title"] == POOL_TITLE]
        yield DigitsProject(int(number), person, stack.folder / "models", digits)


def demo_has_ended(stack: Stack) -> bool:
    [state] = stack.states("demo")
    make_sure(state["Running"] or state["ExitCode"] == 0, "The demo's project was not made: see the log of demo.")
    return not state["Running"]


def label_in_order(project: DigitsProject, version: str) -> None:
    """Label what makes a round due. Label Studio has to serve the lowest scores, lowest first."""
    order = project.order(version)
    served = project.label(PER_ROUND)
    make_sure(served == order[:PER_ROUND], f"By {version} {order[:PER_ROUND]} come next, but {served} were served.")
    say(f"{PER_ROUND} labels; each task served was the lowest score of {version}")


def wait_for_version(stack: Stack, project: DigitsProject, version: str, labels: int) -> None:
    """Until Label Studio orders by this version, which has learned all labels; its queue is complete."""
    started = time.monotonic()
    stack.wait(lambda: project.version() == version, f"{version} to order the queue")
    stack.wait(lambda: stack.progress(project.number) is None, "the end of the round")
    stack.fetch(project.number, project.models)
    learned = sum(project.manifest(version).labels.values())
    make_sure(learned == labels, f"{version} has learned {learned} labels and there are {labels}.")
    missing = project.unlabelled() - project.predictions(version).keys()
    make_sure(not missing, f"{len(missing)} tasks have no prediction of {version}, such as {sorted(missing)[:3]}.")
    say(f"{version} with {labels} labels orders the queue {time.monotonic() - started:.0f} s later")


def in_training(stack: Stack, project: DigitsProject) -> bool:
    progress = stack.progress(project.number)
    return progress is not None and progress["phase"] == "training" and progress["done"] > 0


# Scenes


def loop(folder: Path, options: Options) -> None:
    with brought_up(folder, ["docker-compose.yml"], options.images) as stack:
        examine_image(IMAGE)
        stack.wait(lambda: demo_has_ended(stack), "the demo's ordered project", seconds=SECONDS_TO_START)
        make_sure("LPLGRAD_THREADS" not in stack.call("worker", "env"), "LPLGRAD_THREADS is set.")
        make_sure(stack.call("worker", "id", "-u").strip() == "10001", "The worker runs as somebody else.")
        with signed_in(stack) as project:
            wait_for_version(stack, project, "v1", PER_ROUND)
            stack.call("worker", "python", "-m", "lplgrad_backend", "doctor", "--project", str(project.number))
            say("doctor finds every hop ok")
            label_in_order(project, "v1")
            wait_for_version(stack, project, "v2", 2 * PER_ROUND)
            label_in_order(project, "v2")
            annotated = annotations(project)
            stack.wait(lambda: in_training(stack, project), "the third round to train")
            stop_in_mid_round(stack, project)
        say(f"up again in {stack.up():.0f} s")
        with signed_in(stack) as project:
            make_sure(annotations(project) == annotated, "Annotations were lost.")
            wait_for_version(stack, project, "v3", 3 * PER_ROUND)
            label_in_order(project, "v3")
            say(stack.call("worker", "python", "-m", "lplgrad_backend", "check").strip())


def annotations(project: DigitsProject) -> set[int]:
    return {annotation["id"] for task in project.tasks() for annotation in task["annotations"]}


def stop_in_mid_round(stack: Stack, project: DigitsProject) -> None:
    seconds = stack.stop()
    codes = {name: state["ExitCode"] for name in ("label-studio", "web", "worker") for state in stack.states(name)}
    say(f"stopped in mid-round within {seconds:.1f} s; statuses {codes}")
    make_sure(KILLED not in codes.values(), f"A container had to be killed: {codes}.")
    make_sure(codes["worker"] == 0 and codes["web"] == 0, f"A container did not end in order: {codes}.")
    make_sure(seconds < GRACE, f"The stop took {seconds:.0f} s.")
    stack.fetch(project.number, project.models)
    newest = Store(project.models).newest(project.number)
    make_sure(newest is not None and newest.version == "v2", "The round was over before the stop; nothing was tested.")


def scale(folder: Path, options: Options) -> None:
    files = ["docker-compose.yml", "docker-compose.scale.yml"]
    # no shards, or an idle worker would rightly score a part of the other's pool
    lines = {**options.images, "LPLGRAD_SHARD_SIZE": "2000"}
    with brought_up(folder, files, lines, "--scale", "worker=2") as stack:
        seen: set[str] = set()

        def alone() -> list[str]:
            """The worker at a round, if there is one."""
            at_work = stack.with_program("worker", TRAINER)
            make_sure(len(at_work) <= 1, f"Both workers are at the same project: {at_work}.")
            seen.update(at_work)
            return at_work

        def ended() -> bool:
            alone()
            return demo_has_ended(stack)

        stack.wait(ended, "the demo's ordered project", seconds=SECONDS_TO_START)
        make_sure(bool(seen), "No worker was ever seen at the first round.")
        with signed_in(stack) as project:
            wait_for_version(stack, project, "v1", PER_ROUND)
            say(f"the first round was one worker's: {len(seen)} of 2 seen at it")
            label_in_order(project, "v1")
            stack.wait(lambda: in_training(stack, project), "the second round to train")
            [victim] = stack.wait(alone, "a worker at the second round")
            docker("kill", victim)
            say(f"killed the worker {victim[:12]} in mid-round")
            seen.clear()
            stack.wait(lambda: alone() and not seen & {victim}, "the other worker to take the round")
            wait_for_version(stack, project, "v2", 2 * PER_ROUND)
            [state] = json.loads(docker("inspect", victim))
            make_sure(not state["State"]["Running"], "The killed worker was started again, and may have finished it.")
            say(f"the worker {min(seen)[:12]} finished it")
            label_in_order(project, "v2")


def weights(folder: Path, options: Options) -> None:
    """Small sides, since what is asked is where a version starts from and not how well it learns."""
    file = options.weights or random_weights(folder, options)
    lines = {
        "LPLGRAD_IMAGE": BAKED,
        "WEIGHTS": f"/weights/{file.name}",
        "BACKBONE": options.backbone,
        "LPLGRAD_BACKBONE_OPTIONS": options.backbone_options,
        "LPLGRAD_PIXELS": options.pixels,
        "LPLGRAD_IMAGE_SIZE": "97",
    }
    with brought_up(folder, ["docker-compose.yml"], {**options.images, **lines}, baked=file) as stack:
        examine_image(BAKED)
        stack.wait(lambda: demo_has_ended(stack), "the demo's ordered project", seconds=SECONDS_TO_START)
        with signed_in(stack) as project:
            wait_for_version(stack, project, "v1", PER_ROUND)
            compare_weights(file, project)


def random_weights(folder: Path, options: Options) -> Path:
    torch.manual_seed(1)
    network = torchvision.models.get_model(options.backbone, weights=None, **json.loads(options.backbone_options))
    torch.save(network.state_dict(), folder / "random.pth")
    return folder / "random.pth"


def compare_weights(file: Path, project: DigitsProject) -> None:
    """With a recipe that trains the head alone, the rest of a version is the file."""
    manifest = project.manifest("v1")
    say(manifest.recipe_reason)
    make_sure(manifest.recipe["trained"] == "head", f"Not frozen: {manifest.recipe_reason}")
    given = torch.load(file, weights_only=True)
    version = safetensors.torch.load_file(Store(project.models).weights_path(project.number, "v1"))
    own = {name.removeprefix("main.backbone."): tensor for name, tensor in version.items()}
    frozen = [name for name in given if not name.startswith("classifier.") and not name.endswith("num_batches_tracked")]
    changed = [name for name in frozen if name not in own or not torch.equal(own[name], given[name])]
    make_sure(
        bool(frozen) and not changed, f"{len(changed)} of the file's {len(frozen)} tensors are not the version's."
    )
    say(f"the file's {len(frozen)} tensors are the version's, bit by bit")


def examine_image(image: str) -> None:
    [found] = json.loads(docker("image", "inspect", image))
    make_sure(found["Config"]["User"] == "lplgrad", "The image runs as root.")
    make_sure(bool(found["Config"].get("Healthcheck")), "The image has no health check.")
    say(f"{image}: {found['Size'] / 1e9:.2f} GB, runs as {found['Config']['User']}, has a health check")
    for line in docker("history", "--format", "{{.Size}}\t{{.CreatedBy}}", image).splitlines():
        size, _, made_by = line.partition("\t")
        if not size.startswith("0B"):
            say(f"  {size:>8}  {made_by[:90]}")


SCENES: Mapping[str, Callable[[Path, Options], None]] = {"loop": loop, "scale": scale, "weights": weights}


def images(stand_ins: bool) -> dict[str, str]:
    """Lines of docker/.env: what is set here, and the stand-ins, built."""
    lines = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    for name, (tag, context) in STAND_INS.items() if stand_ins else ():
        docker("build", "-t", tag, "-f", ROOT / "tests/standins" / DOCKERFILES[name], ROOT / context)
        lines[name] = tag
        say(f"{tag} stands in for {name}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", nargs="*", choices=[*SCENES, []], metavar="SCENE", help="all unless named")
    parser.add_argument("--stand-ins", action="store_true", help="Label Studio and Redis from package indexes")
    parser.add_argument("--weights", type=Path, help="a weights file; random ones of --backbone unless given")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--backbone-options", default='{"width_mult":0.35}')
    parser.add_argument("--pixels", default="half")
    given = parser.parse_args()
    try:
        chosen = images(given.stand_ins)
        options = Options(chosen, given.weights, given.backbone, given.backbone_options, given.pixels)
        for name in given.scenes or SCENES:
            say(f"== {name}")
            with tempfile.TemporaryDirectory() as folder:
                SCENES[name](Path(folder), options)
            say(f"== {name}: ok")
    except StackError as error:
        sys.exit(f"FAILED: {error}")


if __name__ == "__main__":
    main()
