"""Where weights come from, and what happens when they cannot be had: a sentence, never a run of what was loaded."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor

from lplgrad_backend.errors import SettingsError, TrainingError
from lplgrad_backend.pretrained import (
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    RETRY_SECONDS,
    download,
    load_into,
    resolve,
)

BACKBONE = "shufflenet_v2_x0_5"


def state(seed: int = 1, classes: int = 1000, backbone: str = BACKBONE) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model = torchvision.models.get_model(backbone, weights=None, num_classes=classes)
    return dict(model.state_dict())


def refused(address: str, file: Path) -> None:
    raise OSError("no way out")


def saved(file: Path, tensors: dict[str, Tensor]) -> Path:
    if file.suffix == ".safetensors":
        safetensors.torch.save_file(tensors, file)
    else:
        torch.save(tensors, file)
    return file


@pytest.fixture(autouse=True)
def _no_weights_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's own cache is somewhere empty, whatever this machine has."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


@pytest.mark.parametrize(("weights", "side"), [("none", 500), ("none", 8), ("auto", 64), ("auto", 8)])
def test_from_scratch_is_no_reason_for_a_warning(tmp_path: Path, weights: str, side: int) -> None:
    found = resolve(weights, "imagenet", BACKBONE, side, tmp_path, refused)
    assert (found.state, found.warning) == (None, None)
    assert found.mean == found.std == HALF


class TestImageNet:
    def test_weights_are_fetched_once_and_kept(self, tmp_path: Path) -> None:
        asked: list[str] = []

        def fetch(address: str, file: Path) -> None:
            asked.append(address)
            saved(file, state())

        for weights in ("auto", "imagenet"):
            found = resolve(weights, "half", BACKBONE, 65, tmp_path, fetch)
            assert found.state is not None and found.warning is None
            assert (found.mean, found.std) == (IMAGENET_MEAN, IMAGENET_STD)
        [address] = asked
        assert address == torchvision.models.get_model_weights(BACKBONE).DEFAULT.url

    def test_what_torchvision_has_is_not_fetched(self, tmp_path: Path) -> None:
        name = torchvision.models.get_model_weights(BACKBONE).DEFAULT.url.rpartition("/")[2]
        folder = tmp_path / "torch" / "hub" / "checkpoints"
        folder.mkdir(parents=True)
        saved(folder / name, state())
        assert resolve("imagenet", "half", BACKBONE, 65, tmp_path / "ours", refused).state is not None

    def test_one_rescales_pixels_itself(self, tmp_path: Path) -> None:
        found = resolve("imagenet", "imagenet", "googlenet", 224, tmp_path, lambda _, file: _put(file))
        assert (found.mean, found.std) == (HALF, HALF)

    def test_a_failure_is_a_sentence_and_not_tried_again_within_the_hour(self, tmp_path: Path) -> None:
        asked: list[str] = []

        def fetch(address: str, file: Path) -> None:
            asked.append(address)
            raise OSError("no way out")

        for _ in range(3):
            found = resolve("auto", "imagenet", BACKBONE, 500, tmp_path, fetch)
            assert found.state is None and found.warning is not None
            assert BACKBONE in found.warning and "LPLGRAD_WEIGHTS" in found.warning
        assert len(asked) == 1
        [note] = tmp_path.glob("*.unavailable")
        before = time.time() - RETRY_SECONDS - 10
        os.utime(note, (before, before))
        resolve("auto", "imagenet", BACKBONE, 500, tmp_path, fetch)
        assert len(asked) == 2

    def test_a_damaged_file_of_ours_is_fetched_anew_after_the_hour(self, tmp_path: Path) -> None:
        asked: list[str] = []

        def fetch(address: str, file: Path) -> None:
            asked.append(address)
            file.write_bytes(b"rot") if len(asked) == 1 else saved(file, state())

        assert resolve("imagenet", "half", BACKBONE, 65, tmp_path, fetch).warning is not None
        [note] = tmp_path.glob("*.unavailable")
        os.utime(note, (0, 0))
        assert resolve("imagenet", "half", BACKBONE, 65, tmp_path, fetch).state is not None
        assert len(asked) == 2

    def test_a_folder_that_refuses_is_no_crash(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("where the folder should be")
        assert resolve("imagenet", "half", BACKBONE, 65, tmp_path / "file", refused).warning is not None

    def test_a_backbone_without_weights_is_a_sentence(self, tmp_path: Path) -> None:
        assert resolve("imagenet", "half", "no_such_network", 500, tmp_path, refused).warning is not None


def _put(file: Path) -> None:
    saved(file, {"a": torch.ones(1)})


class TestLocalFiles:
    @pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors"])
    @pytest.mark.parametrize("pixels", ["half", "imagenet"])
    def test_each_kind_is_read(self, tmp_path: Path, name: str, pixels: str) -> None:
        file = saved(tmp_path / name, {"a": torch.arange(3.0)})
        found = resolve(str(file), pixels, BACKBONE, 8, tmp_path, refused)
        assert found.state is not None and found.state["a"].tolist() == [0, 1, 2]
        assert found.mean == (HALF if pixels == "half" else IMAGENET_MEAN)

    @pytest.mark.parametrize("make", [
        lambda file: None,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\x80\x02rot"),
        lambda file: torch.save([torch.ones(1)], file),
        lambda file: torch.save({"epoch": 3}, file),
    ])  # fmt: skip
    def test_a_file_that_is_none_is_named(self, tmp_path: Path, make: Callable[[Path], object]) -> None:
        make(tmp_path / "w.pth")
        with pytest.raises(SettingsError, match=r"LPLGRAD_WEIGHTS.*w\.pth"):
            resolve(str(tmp_path / "w.pth"), "half", BACKBONE, 8, tmp_path, refused)

    def test_nothing_that_is_loaded_runs(self, tmp_path: Path) -> None:
        trace = tmp_path / "it ran"

        class Trap:
            def __reduce__(self) -> tuple[object, tuple[object, ...]]:
                return Path.touch, (trace,)

        (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": Trap()}, protocol=2))
        torch.save({"a": Trap()}, tmp_path / "v.pth")
        for name in ("w.pth", "v.pth"):
            with pytest.raises(SettingsError):
                resolve(str(tmp_path / name), "half", BACKBONE, 8, tmp_path, refused)
        assert not trace.exists()
        pickle.load(io.BytesIO((tmp_path / "w.pth").read_bytes()))
        assert trace.exists()  # so the trap works


class TestLoading:
    def test_a_head_of_another_size_is_left_out_in_silence(self) -> None:
        model = torchvision.models.get_model(BACKBONE, weights=None, num_classes=4)
        assert load_into(model, state(seed=5)) is None
        own = model.state_dict()
        assert all(torch.equal(own[name], value) for name, value in state(seed=5).items() if not name.startswith("fc."))

    def test_parts_that_are_missing_are_named(self) -> None:
        wanted = {name: value for name, value in state().items() if not name.startswith("conv5")}
        said = load_into(torchvision.models.get_model(BACKBONE, weights=None), wanted)
        assert said is not None and "conv5" in said and "missing" in said

    def test_another_networks_weights_are_refused(self) -> None:
        with pytest.raises(TrainingError, match="LPLGRAD_BACKBONE"):
            load_into(torchvision.models.get_model(BACKBONE, weights=None), state(backbone="squeezenet1_1"))

    def test_the_older_names_of_densenet_are_understood(self) -> None:
        model = torchvision.models.densenet121(weights=None, num_classes=3)
        older = {
            name.replace("norm1.", "norm.1.").replace("norm2.", "norm.2.").replace("conv1.", "conv.1.")
            .replace("conv2.", "conv.2.") if "denselayer" in name else name: torch.full_like(value, 2)
            for name, value in model.state_dict().items()
        }  # fmt: skip
        assert load_into(model, older) is None
        assert (model.get_parameter("features.denseblock1.denselayer1.norm1.weight") == 2).all()


class TestDownload:
    @pytest.mark.parametrize("said", [b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\ncut",
                                      b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ncut"])  # fmt: skip
    def test_a_server_that_breaks_off_is_an_error_of_the_system(self, tmp_path: Path, said: bytes) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:

            def answer() -> None:
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(said)

            thread = threading.Thread(target=answer)
            thread.start()
            with pytest.raises(OSError):
                download(f"http://127.0.0.1:{server.getsockname()[1]}/net-00000000.pth", tmp_path / "net-00000000.pth")
            thread.join()
        assert not (tmp_path / "net-00000000.pth").exists()

    def test_what_comes_is_compared_with_its_name(self, tmp_path: Path) -> None:
        content = tmp_path / "content"
        content.write_bytes(b"weights")
        digest = hashlib.sha256(b"weights").hexdigest()[:8]
        good, bad = tmp_path / "new" / f"net-{digest}.pth", tmp_path / "new" / "net-00000000.pth"
        download(content.as_uri(), good)
        assert good.read_bytes() == b"weights"
        with pytest.raises(OSError, match="not what its name says"):
            download(content.as_uri(), bad)
        assert not bad.exists()
