"""Recipes by name, and which one `auto` means."""

from __future__ import annotations

import pytest
import torch

from lplgrad_backend.lplgrad.recipe import RECIPES, choose, recipe_from_plain

CPU, OTHER = torch.device("cpu"), torch.device("meta")


@pytest.mark.parametrize(
    ("preset", "weights", "images", "device", "linear", "wanted"),
    [
        ("auto", False, 50, CPU, True, "scratch"),
        ("auto", True, 50, CPU, True, "frozen"),
        ("auto", True, 5000, CPU, True, "frozen"),
        ("auto", True, 50, OTHER, True, "frozen"),
        ("auto", True, 5000, OTHER, True, "finetune"),
        ("auto", True, 50, CPU, False, "finetune"),
        ("frozen", False, 50, CPU, True, "scratch"),
        ("frozen", True, 50, CPU, False, "finetune"),
        ("finetune", False, 50, CPU, True, "scratch"),
        ("finetune", True, 50, CPU, True, "finetune"),
        ("scratch", True, 50, CPU, True, "scratch"),
        ("paper", True, 50, CPU, True, "paper"),
    ],
)
def test_a_preset_means_a_recipe_and_says_which(
    preset: str, weights: bool, images: int, device: torch.device, linear: bool, wanted: str
) -> None:
    recipe, sentence = choose(preset, weights, images, device, 96, linear_head=linear)
    assert recipe == RECIPES[wanted]
    assert sentence.startswith(wanted + ":") and sentence.endswith(".")


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(KeyError):
        choose("frosen", True, 50, CPU, 96)


def test_only_the_papers_ranking_loss_reaches_the_main_model() -> None:
    assert [name for name, recipe in RECIPES.items() if recipe.cut_after > 0 or recipe.ranking_weight > 0.1] == [
        "paper"
    ]


def test_what_another_release_knew_besides_is_left_out() -> None:
    assert recipe_from_plain({**RECIPES["frozen"].as_plain(), "momentums": 3}) == RECIPES["frozen"]
