"""One of several processes that train a network in float64, where rounding cannot hide or pretend anything.

    python team_member.py FOLDER RANK PROCESSES

It leaves what the network says after some steps of each of RECIPES in FOLDER. `trained(ALONE, …)` does the same in one
process.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from lplgrad_backend.lplgrad.network import Architecture, Network
from lplgrad_backend.lplgrad.recipe import PAPER, Recipe
from lplgrad_backend.lplgrad.team import ALONE, Team, Together, share_batch_norm
from lplgrad_backend.lplgrad.training import fit, look_at

COUNT, SIDE = 11, 32
# batches of 4, 4 and 3 images, so of unequal parts; the ranking loss reaches into the main model, then no more
RECIPE = replace(PAPER, epochs=2, batch=4, rate=0.01, cut_after=0.5, settling=2)
RECIPES = {
    "all": RECIPE,
    "stage": replace(RECIPE, trained="stage", epochs=1),
    "pairs": replace(RECIPE, batch=2, epochs=1),  # and a single image, of which one of two processes has nothing
    "adamw": replace(RECIPE, optimiser="adamw", rate=1e-4, balanced=True, epochs=1),
}


def network() -> Network:
    """Batch normalisation and no dropout, which is drawn for each process otherwise."""
    torch.manual_seed(0)
    architecture = Architecture("shufflenet_v2_x0_5", classes=3, multiple=False, side=SIDE, small_stem=True)
    return Network(architecture).double()


def pictures() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (COUNT, 3, SIDE, SIDE), dtype=torch.uint8, generator=random)
    return images, torch.eye(3, dtype=torch.float64)[torch.arange(COUNT) % 3]


def trained(team: Team, recipe: Recipe) -> dict[str, Tensor]:
    """What the trained network says of the pictures, and the losses of each epoch. (Not its weights: biases before batch
    normalisation say nothing, and move with the last digit of what should be a gradient of 0.)"""
    member, (images, targets) = network(), pictures()
    if team is not ALONE:
        share_batch_norm(member)
    records = list(fit(member, images, targets, recipe, seed=5, device=torch.device("cpu"), team=team))
    losses = torch.tensor([[record.loss, record.ranking_loss, record.accuracy] for record in records])
    looked = look_at(member, images)
    with torch.no_grad():
        predicted = member.loss_prediction(looked.pooled)
    return {"logits": looked.logits, "predicted losses": predicted, "losses": losses.double()}


def main() -> None:
    folder, rank, processes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=rank, world_size=processes)
    for name, recipe in RECIPES.items():
        safetensors.torch.save_file(trained(Together(), recipe), folder / f"{name}.{rank}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
