"""A version's classifier for use elsewhere: a folder with the model, what it takes and gives as JSON, and a model card.

    model.pt | model.onnx    images [N, 3, S, S] float32, RGB in [0, 1] -> probabilities [N, C]; normalises by itself
    model.safetensors        the classifier's tensors, by torchvision's names below "backbone."
    model.json               classes, size and preprocessing, metrics
    README.md                the model card

TorchScript and ONNX carry the probabilities of `/predict`; the loss-prediction module is left behind. TorchScript is made
by tracing, which torch calls deprecated and still loads without Python.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors.torch
import torch
from torch import Tensor, nn

from lplgrad_backend.errors import StoreError
from lplgrad_backend.files import whole_folder
from lplgrad_backend.lplgrad.network import Network
from lplgrad_backend.scoring import load_network, probabilities_of
from lplgrad_backend.store import Manifest, Store

Format = Literal["torchscript", "onnx", "safetensors"]
FORMATS: tuple[str, ...] = get_args(Format)
FILES = {"torchscript": "model.pt", "onnx": "model.onnx", "safetensors": "model.safetensors"}
RESIZING = "Pillow, bilinear, to side x side pixels whatever the aspect ratio, RGB, divided by 255"


class Probabilities(nn.Module):
    """The main model with its last step: images [N, 3, S, S] in [0, 1] -> class probabilities [N, C] at a temperature."""

    def __init__(self, network: Network, temperature: float) -> None:
        super().__init__()
        self.main, self._multiple, self._temperature = network.main, network.architecture.multiple, temperature

    def forward(self, images: Tensor) -> Tensor:
        return probabilities_of(self.main(images) / self._temperature, self._multiple)


def export(store: Store, project: int, version: str, kind: Format, target: Path) -> Path:
    """Write a version to the new folder `target`, whole or not at all; the model's file.

    Raises:
        VersionNotFound, VersionDamaged
        StoreError: `target` exists, or cannot be written.
    """
    manifest = store.manifest(project, version)
    network = load_network(manifest, store.weights_path(project, version)).requires_grad_(False)
    try:
        with whole_folder(target) as folder:
            _write_model(network, manifest.temperature, kind, folder / FILES[kind])
            described = describe(manifest, network, FILES[kind])
            (folder / "model.json").write_text(json.dumps(described, indent=1, ensure_ascii=False))
            (folder / "README.md").write_text(card(manifest, described))
    except OSError as error:
        raise StoreError(f"{version} of project {project} cannot be exported to {target}: {error}") from error
    return target / FILES[kind]


def _write_model(network: Network, temperature: float, kind: Format, file: Path) -> None:
    side = network.architecture.side
    images = torch.rand(2, 3, side, side)
    model = Probabilities(network, temperature).eval()
    if kind == "safetensors":
        safetensors.torch.save_file(
            {name: value.contiguous() for name, value in network.main.state_dict().items()}, file
        )
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch's own exporters
        if kind == "torchscript":
            torch.jit.trace(model, images).save(str(file))
        else:
            torch.onnx.export(
                model, (images,), str(file), input_names=["images"], output_names=["probabilities"], dynamo=True,
                dynamic_shapes={"images": {0: torch.export.Dim("images")}}, external_data=False, verbose=False,
            )  # fmt: skip


def describe(manifest: Manifest, network: Network, file: str) -> dict[str, Any]:
    """What a program must know to use the model."""
    architecture = network.architecture
    return {
        "file": file,
        "classes": list(manifest.labeling.classes),
        "several_classes_per_image": manifest.labeling.multiple,
        "input": {"name": "images", "shape": ["N", 3, architecture.side, architecture.side], "range": [0, 1]},
        "output": {"name": "probabilities", "shape": ["N", len(manifest.labeling.classes)]},
        "preprocessing": {
            "resize": RESIZING,
            "side": architecture.side,
            "normalised_inside": {"mean": list(architecture.pixel_mean), "std": list(architecture.pixel_std)},
        },
        "temperature": manifest.temperature,
        "backbone": architecture.backbone,
        "architecture": architecture.as_plain(),
        "project": manifest.project,
        "version": manifest.version,
        "labels": manifest.labels,
        "metrics": manifest.metrics,
    }


def card(manifest: Manifest, described: dict[str, Any]) -> str:
    """The model card, as Markdown."""
    side, accuracy = described["preprocessing"]["side"], manifest.metrics.get("held_out_accuracy")
    measured = (
        f"{accuracy:.1%} of {manifest.metrics['held_out_images']:.0f} labelled images that it was not trained on"
        if accuracy is not None
        else "not measured: too few labels to hold any out"
    )
    kind = "any number of classes (sigmoid)" if manifest.labeling.multiple else "one class (softmax)"
    rows = "\n".join(f"| {name} | {manifest.labels.get(name, 0)} |" for name in manifest.labeling.classes)
    return f"""# {manifest.version} of Label Studio project {manifest.project}

An image classifier ({described["backbone"]}) for {kind} per image, trained {manifest.created:%Y-%m-%d} with LPLgrad.

- Takes images [N, 3, {side}, {side}], float32, RGB from 0 to 1. Preprocessing: {RESIZING}.
- Gives class probabilities [N, {len(manifest.labeling.classes)}], in the order of the table (safetensors: logits).
- Accuracy: {measured}.
- Labels were asked for where the model was unsure, so their shares are not those of the images at large, and its
  probabilities are not calibrated for them. Test it on images of your own before relying on it.

| class | labelled images |
|---|---|
{rows}
"""
