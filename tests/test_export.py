"""An exported model gives the probabilities that the version gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from small_versions import ARCHITECTURE, SIDE, save_network, small_network
from torch import Tensor

from lplgrad_backend.errors import StoreError
from lplgrad_backend.export import FILES, FORMATS, export
from lplgrad_backend.lplgrad.network import Network
from lplgrad_backend.store import Store

TEMPERATURE = 0.25


@pytest.fixture(scope="module")
def network() -> Network:
    return small_network(seed=3)


@pytest.fixture(scope="module")
def store(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("models"))
    save_network(store, 1, "v1", network, [(1, "/1.png"), (2, "/2.png")], temperature=TEMPERATURE)
    return store


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def expected(network: Network, images: Tensor) -> np.ndarray:
    with torch.no_grad():
        return torch.softmax(network.main(images) / TEMPERATURE, 1).numpy()


@pytest.mark.filterwarnings("ignore::FutureWarning:torch")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_gives_the_same_probabilities(
    store: Store, tmp_path: Path, images: Tensor, expected: np.ndarray
) -> None:
    loaded = torch.jit.load(str(export(store, 1, "v1", "torchscript", tmp_path / "out")))
    np.testing.assert_allclose(loaded(images).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(loaded(images[:1]).numpy(), expected[:1], atol=1e-6)


def test_onnx_gives_the_same_probabilities(store: Store, tmp_path: Path, images: Tensor, expected: np.ndarray) -> None:
    file = export(store, 1, "v1", "onnx", tmp_path / "out")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for count in (5, 1):
        [found] = session.run(["probabilities"], {"images": images[:count].numpy()})
        np.testing.assert_allclose(found, expected[:count], atol=1e-5)
    assert sorted(path.name for path in file.parent.iterdir()) == ["README.md", "model.json", "model.onnx"]


def test_safetensors_hold_the_main_model(store: Store, tmp_path: Path, images: Tensor, expected: np.ndarray) -> None:
    tensors = safetensors.torch.load_file(export(store, 1, "v1", "safetensors", tmp_path / "out"))
    empty = small_network(seed=4).main
    empty.load_state_dict(tensors)
    with torch.no_grad():
        np.testing.assert_allclose(torch.softmax(empty(images) / TEMPERATURE, 1).numpy(), expected, atol=1e-6)
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (described["classes"], described["temperature"]) == (["cat", "dog"], TEMPERATURE)
    assert described["preprocessing"]["side"] == ARCHITECTURE.side
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| cat | 1 |" in card
    assert "not measured" in card


def test_what_is_there_is_not_overwritten(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(StoreError, match="cannot be exported"):
        export(store, 1, "v1", "safetensors", tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert set(FILES) == set(FORMATS)
