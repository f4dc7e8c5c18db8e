"""Several processes take the steps of one: what one network says, to six digits and more, in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from team_member import RECIPES, trained
from torch import nn

from lplgrad_backend.lplgrad.team import ALONE, SharedBatchNorm2d, share_batch_norm

MEMBER = Path(__file__).parent / "team_member.py"
PROCESSES = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left."""
    folder = tmp_path_factory.mktemp("team")
    environ = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(MEMBER.parent.parent)}
    members = [
        subprocess.Popen(
            [sys.executable, str(MEMBER), str(folder), str(rank), str(PROCESSES)], env=environ, stderr=subprocess.PIPE
        )
        for rank in range(PROCESSES)
    ]
    said = [member.communicate()[1].decode() for member in members]
    assert [member.returncode for member in members] == [0] * PROCESSES, "\n".join(said)
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_the_network_of_several_says_what_that_of_one_says(folder: Path, name: str) -> None:
    threads = torch.get_num_threads()
    alone = trained(ALONE, RECIPES[name])
    for rank in range(PROCESSES):
        together = safetensors.torch.load_file(folder / f"{name}.{rank}.safetensors")
        assert together.keys() == alone.keys()
        for key, wanted in alone.items():
            assert wanted.dtype == torch.float64
            torch.testing.assert_close(together[key], wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))
    assert torch.get_num_threads() == threads


def test_a_shared_batch_norm_keeps_parameters_averages_and_mode() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-3, momentum=0.3)).eval()
    images = torch.rand(5, 3, 6, 6)
    module[1].running_mean.fill_(0.25)
    before, names = module(images), list(module.state_dict())
    parameters = list(module.parameters())
    share_batch_norm(module)
    shared = module[1]
    assert isinstance(shared, SharedBatchNorm2d) and not shared.training
    assert (shared.eps, shared.momentum) == (1e-3, 0.3)
    torch.testing.assert_close(module(images), before, rtol=0, atol=0)
    assert list(module.state_dict()) == names
    assert all(one is other for one, other in zip(module.parameters(), parameters, strict=True))


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(4), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False)]
)
def test_another_kind_of_batch_norm_is_refused(norm: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"1, a BatchNorm.*cannot be shared"):
        share_batch_norm(nn.Sequential(nn.ReLU(), norm))
