"""Label configs, annotations and predictions as this backend understands them. Pure: no network, no disk.

A label config is untrusted XML: it is parsed without entities, network or unbounded trees. What Label Studio stores in
an annotation is the choice's alias where it has one, else its value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lxml import etree

from lplgrad_backend.errors import ImageError, LabelConfigError, RequestError

LARGEST_CONFIG = 2**20  # characters
SINGLE = ("", "single", "single-radio")
MULTIPLE = ("multiple",)
LARGEST_PROJECT = 2**53


@dataclass(frozen=True)
class Labeling:
    """What a label config asks for: which of `classes` an image shows.

    Attributes:
        from_name: name of the Choices.
        to_name: name of the Image.
        data_key: field of a task's data that holds the image's address.
        classes: as they stand in annotations (alias, else value), in the config's order.
        multiple: any number of classes per image instead of one.
        plain_values: (value, class) of each choice that has an alias, since imported annotations may say the value.
    """

    from_name: str
    to_name: str
    data_key: str
    classes: tuple[str, ...]
    multiple: bool
    # not compared: a version means the same whatever the choices are called on screen
    plain_values: tuple[tuple[str, str], ...] = field(default=(), compare=False)

    def reads_like(self, other: Labeling) -> bool:
        """Whether the label config also calls the classes the same on screen."""
        return self == other and self.plain_values == other.plain_values

    def named(self, text: object) -> str | None:
        """The class that an annotation means by `text`, or None for an unknown label."""
        if not isinstance(text, str):
            return None
        return text if text in self.classes else dict(self.plain_values).get(text)


@dataclass(frozen=True)
class Example:
    """One labelled image. `target` has one number in [0, 1] per class; for one class per image they sum to 1."""

    task_id: int
    uri: str
    target: tuple[float, ...]


@dataclass(frozen=True)
class Annotations:
    """Everything a round trains on, and a digest per annotation that tells whether it changed."""

    examples: tuple[Example, ...]
    digests: Mapping[str, str]


def parse_label_config(label_config: str, control: str | None = None) -> Labeling:
    """What the label config asks for: its first suitable Choices, or the one called `control`.

    Raises:
        LabelConfigError: saying what to change.
    """
    tree = _parse(label_config)
    images = _images(tree)
    controls = [tag for tag in _tags(tree, "Choices") if tag.get("name")]
    if not images:
        raise LabelConfigError('The label config has no Image to learn from: add <Image name="image" value="$image"/>.')
    if not controls:
        raise LabelConfigError("The label config has no Choices: add one with a choice per class, toName the Image.")
    if control is not None:
        named = [tag for tag in controls if tag.get("name") == control]
        if not named:
            known = ", ".join(str(tag.get("name")) for tag in controls)
            raise LabelConfigError(
                f"Extra params name the control {control!r}, which the label config lacks; it has {known}."
            )
        return _labeling(named[0], images)
    return _first_suitable(controls, images)


def _first_suitable(controls: Sequence[Any], images: Mapping[str, str]) -> Labeling:
    first_reason: LabelConfigError | None = None
    for tag in controls:
        try:
            return _labeling(tag, images)
        except LabelConfigError as error:
            first_reason = first_reason or error
    assert first_reason is not None
    raise first_reason


def _parse(label_config: str) -> Any:
    if len(label_config) > LARGEST_CONFIG:
        raise LabelConfigError(f"The label config is longer than {LARGEST_CONFIG} characters.")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        # as bytes, since lxml refuses text that carries an encoding declaration
        tree = etree.fromstring(_without_declaration(label_config).encode("utf-8", "strict"), parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise LabelConfigError(f"The label config is not valid XML: {error}.") from error
    if tree.getroottree().docinfo.doctype:
        raise LabelConfigError("The label config has a DOCTYPE, which Label Studio has no use for: remove it.")
    return tree


def _without_declaration(label_config: str) -> str:
    text = label_config.strip().lstrip("\ufeff")
    return text[text.find("?>") + 2 :] if text.startswith("<?xml") and "?>" in text else text


def _tags(tree: Any, name: str) -> list[Any]:
    return [tag for tag in tree.iter(etree.Element) if tag.tag == name]


def _images(tree: Any) -> dict[str, str]:
    """Name of each Image -> the data field it shows. Lists of images are left out."""
    shown = {tag.get("name"): (tag.get("value") or "").strip() for tag in _tags(tree, "Image") if tag.get("name")}
    return {name: value[1:] for name, value in shown.items() if value.startswith("$") and len(value) > 1}


def _labeling(tag: Any, images: Mapping[str, str]) -> Labeling:
    name = str(tag.get("name"))
    kind = (tag.get("choice") or "").strip().lower()
    if tag.get("perRegion", "").lower() == "true" or tag.get("perItem", "").lower() == "true":
        raise LabelConfigError(
            f"Choices {name!r} is asked per region; only choices for the whole image can be learned."
        )
    if kind not in SINGLE + MULTIPLE:
        raise LabelConfigError(f"Choices {name!r} has choice={kind!r}; set it to single or multiple.")
    if tag.get("value"):
        raise LabelConfigError(f"Choices {name!r} takes its choices from task data; list them as <Choice> instead.")
    to_names = [part.strip() for part in (tag.get("toName") or "").split(",")]
    to_name = next((part for part in to_names if part in images), None)
    if to_name is None:
        raise LabelConfigError(f"Choices {name!r} is not about an Image with a value such as $image: see its toName.")
    aliased = tuple((value, alias) for alias, value in _choices(tag, name) if alias and value)
    return Labeling(name, to_name, images[to_name], _classes(tag, name), kind in MULTIPLE, aliased)


def _classes(tag: Any, name: str) -> tuple[str, ...]:
    choices = _choices(tag, name)
    classes = tuple(dict.fromkeys(alias or value for alias, value in choices))
    if len(classes) < 2:
        raise LabelConfigError(f"Choices {name!r} has {len(classes)} class(es); at least two are needed to learn.")
    return classes


def _choices(tag: Any, name: str) -> list[tuple[str, str]]:
    """(alias, value) of each Choice, "" for what it lacks; those without either are left out."""
    choices = _tags(tag, "Choice")
    if any(_tags(choice, "Choice") != [choice] for choice in choices):
        raise LabelConfigError(f"Choices {name!r} has choices within choices; only a flat list can be learned.")
    pairs = [(choice.get("alias") or "", choice.get("value") or "") for choice in choices]
    return [pair for pair in pairs if any(pair)]


def named_control(extra_params: object) -> str | None:
    """The control that a model's extra params ask for: a bare name, or {"control": name}, as JSON text or as JSON."""
    if isinstance(extra_params, str):
        text = extra_params.strip()
        try:
            parsed = json.loads(text)
        except (ValueError, RecursionError):
            return text or None
        extra_params = parsed if isinstance(parsed, Mapping | str | None) else text  # a name may look like a number
    if isinstance(extra_params, Mapping):
        extra_params = extra_params.get("control")
    return extra_params.strip() or None if isinstance(extra_params, str) else None


def project_number(project: object) -> int:
    """2 for 2, "2", "2.1795340157" (id and time of creation) and {"id": 2}.

    Raises:
        RequestError
    """
    value = project.get("id") if isinstance(project, Mapping) else project
    text = str(value).split(".")[0] if isinstance(value, int | str) and not isinstance(value, bool) else ""
    if text.isascii() and text.isdigit() and 0 < len(text) < 17 and 0 < int(text) < LARGEST_PROJECT:
        return int(text)
    raise RequestError(f"project: {str(value)[:100]!r} is not the number of a Label Studio project.")


def image_uri(labeling: Labeling, task: Mapping[str, Any]) -> str:
    """Address of the task's image, as it stands in its data.

    Raises:
        ImageError: the field is missing or not a text.
    """
    data = task.get("data")
    value = data.get(labeling.data_key) if isinstance(data, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        raise ImageError(f"of task {task.get('id')}", f"its data has no text in the field {labeling.data_key!r}.")
    return value


def read_annotations(labeling: Labeling, exported_tasks: Iterable[object]) -> Annotations:
    """Examples of exported tasks. Skipped, empty and unknown-label annotations do not train; of several annotators'
    choices for one task the mean is the target. A task without a number or an image address has no example."""
    examples: list[Example] = []
    digests: dict[str, str] = {}
    for task in exported_tasks:
        number = task.get("id") if isinstance(task, Mapping) else None
        if not isinstance(task, Mapping) or not isinstance(number, int):
            continue
        chosen = {
            str(annotation.get("id")): classes
            for annotation in _mappings(task.get("annotations"))
            if (classes := _chosen(labeling, annotation))
        }
        digests |= {annotation: _digest(classes) for annotation, classes in chosen.items()}
        if not chosen:
            continue
        try:
            uri = image_uri(labeling, task)
        except ImageError:
            continue
        examples.append(Example(number, uri, _target(labeling, list(chosen.values()))))
    return Annotations(tuple(examples), digests)


def _target(labeling: Labeling, choices: Sequence[set[str]]) -> tuple[float, ...]:
    """Mean over annotators [C]; someone who chose several of a single-class question counts in equal parts."""
    shares = [1.0 if labeling.multiple else 1.0 / len(chosen) for chosen in choices]
    return tuple(
        sum(share * (name in chosen) for share, chosen in zip(shares, choices, strict=True)) / len(choices)
        for name in labeling.classes
    )


def _chosen(labeling: Labeling, annotation: Mapping[str, Any]) -> set[str]:
    """The known classes that an annotation chooses."""
    if annotation.get("was_cancelled"):
        return set()
    found: set[str] = set()
    for region in _mappings(annotation.get("result")):
        value = region.get("value")
        if region.get("from_name") == labeling.from_name and isinstance(value, Mapping):
            choices = value.get("choices")
            texts = choices if isinstance(choices, list) else [choices]
            found.update(name for name in map(labeling.named, texts) if name is not None)
    return found


def _mappings(value: object) -> list[Mapping[str, Any]]:
    """The JSON objects of a JSON list; nothing for anything else."""
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def _digest(chosen: set[str]) -> str:
    return hashlib.sha256(json.dumps(sorted(chosen)).encode()).hexdigest()[:16]


def count_changes(before: Mapping[str, str], after: Mapping[str, str]) -> int:
    """How many annotations were added, changed or removed."""
    return sum(before.get(key) != after.get(key) for key in before.keys() | after.keys())


def prediction(
    labeling: Labeling, *, probabilities: Sequence[float] | None, score: float, version: str
) -> dict[str, Any]:
    """A prediction as Label Studio stores it (label-studio-facts 6): with `probabilities`, the likeliest class, or all
    above one half where several may hold; their confidence stands on the region."""
    result = []
    if probabilities is not None:
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        shown = [at for at, p in enumerate(probabilities) if p >= 0.5] if labeling.multiple else [best]
        if shown:
            result.append({
                "from_name": labeling.from_name,
                "to_name": labeling.to_name,
                "type": "choices",
                "value": {"choices": [labeling.classes[at] for at in shown]},
                "score": min(float(probabilities[at]) for at in shown),
            })  # fmt: skip
    return {"result": result, "score": score, "model_version": version}
