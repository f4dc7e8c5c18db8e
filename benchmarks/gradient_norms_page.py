"""gradient_norms.md: what was measured, a part for each kind of processor, and what was asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.gradient_norms_settings import MODELS, TARGETS, Setting

KINDS = {"AVX512": "A processor with AVX-512", "AVX2": "A processor with AVX2"}


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """results: by the vectors that torch computes with, as `torch.backends.cpu.get_cpu_capability` names them."""
    parts = (_part(title, results[vectors]) for vectors, title in KINDS.items() if vectors in results)
    return "\n".join([
        "# Exact gradient norms: cost, error, memory\n",
        "Made by `benchmarks/gradient_norms.py`, which says how. One thread, float32; other programs were running",
        "beside it, so ratios count and seconds do not. Not measured on a GPU: none was at hand.\n",
        "1.0 is the fastest eager forward pass, contiguous or channels last, of the same batch; *step* is an ordinary",
        "batched forward and backward pass; *loop* is the authors' batch of one. Memory is the peak above the weights and",
        "the libraries' code.",
        "*bfloat16* is the largest error, in %, that `activations=torch.bfloat16` makes on four images after some training,",
        "on the processor; it is meant for GPUs, where it was not measured.\n",
        "Error is the largest of an image's score against the float64 loop, in thousandths of it (asked: 1): with new",
        "weights, after some training, that with channels last, that with the rules in float64, which tells rounding from a",
        "wrong rule, and that of the loop in float32, which tells how exact float32 can be; – where the new network's",
        "logits are all equal, or where it was not measured. Some training is three steps, and thirty of inception_v3:",
        "after three, with which it was measured with AVX-512, its logits are 20 apart, its gradient norm is 320 all the",
        "same, and the loop in float32 misses two thousandths of it. By rule: how many parameter tensors have a rule.",
        "Rounds: how many ratios the medians are of.",
        *parts,
    ])  # fmt: skip


def _part(title: str, results: Mapping[str, Any]) -> str:
    facts, rows = results["machine"], results["settings"]
    return "\n".join([
        f"\n## {title}\n",
        f"{facts['cores']} cores ({facts['processor']}), torch {facts['torch']}.\n",
        "| network | exact | asked | step | faster than the loop | asked | cheaper than a step | memory, MB | bfloat16 |",
        "|---|---|---|---|---|---|---|---|---|",
        *[_target_row(setting, rows[setting.name]) for setting in TARGETS if setting.name in rows],
        "",
        *_misses(rows),
        *_stars(rows),
        *_every_network(rows),
        *_ablation(results.get("ablation")),
    ]) + "\n"  # fmt: skip


def _every_network(rows: Mapping[str, Any]) -> list[str]:
    return [
        "\n### Every network\n",
        "| network | error, new | trained | channels last | in float64 | loop in float32 | by rule | exact | step | "
        "faster than the loop | memory, MB | rounds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *[_model_row(setting, rows[setting.name]) for setting in MODELS if setting.name in rows],
        "",
        *_dearer(rows),
        *_unmeasured(rows),
    ]


def _stars(rows: Mapping[str, Any]) -> list[str]:
    earlier = any(row.get("earlier") for row in rows.values())
    return ["\nA star: measured before the last changes to the rules."] if earlier else []


def _target_row(setting: Setting, row: Mapping[str, Any]) -> str:
    star = " *" if row.get("earlier") else ""
    most = "" if setting.most_cost is None else f"≤ {setting.most_cost}"
    least = "" if setting.least_speedup is None else f"≥ {setting.least_speedup} x"
    cheaper = "yes" if row["against_step"] < 1 else "no"
    return (
        f"| {setting.name}{star} | {row['cost']:.2f} | {most} | {row['step_cost']:.2f} | {row['speedup']:.1f} x | {least} | "
        f"{cheaper} ({row['against_step']:.2f}) | {row['megabytes']} | {row.get('bfloat16', '–')} |"
    )


def _model_row(setting: Setting, row: Mapping[str, Any]) -> str:
    kinds = ("untrained", "trained", "trained, channels last", "float64", "loop in float32")
    found = (row["errors"].get(kind) for kind in kinds)
    errors = " | ".join("–" if error is None else f"{error:g}" for error in found)
    star = " *" if row.get("earlier") else ""
    return (
        f"| {setting.name}{star} | {errors} | {row['by_rule']} of {row['tensors']} | {row['cost']:.2f} | "
        f"{row['step_cost']:.2f} | {row['speedup']:.1f} x | {row['megabytes']} | {row['rounds']} |"
    )


def _misses(rows: Mapping[str, Any]) -> list[str]:
    """What was asked and is not reached, a sentence each."""
    found = []
    for setting in (one for one in TARGETS if one.name in rows):
        row = rows[setting.name]
        if setting.most_cost is not None and row["cost"] > setting.most_cost:
            found.append(f"- Missed: {setting.name} costs {row['cost']:.2f} forward passes, not {setting.most_cost}.")
        if setting.least_speedup is not None and row["speedup"] < setting.least_speedup:
            least = setting.least_speedup
            found.append(f"- Missed: {setting.name} is {row['speedup']:.2f} x as fast as the loop, not {least} x.")
    return found


def _dearer(rows: Mapping[str, Any]) -> list[str]:
    measured = [(one.backbone, rows[one.name]["against_step"]) for one in MODELS if one.name in rows]
    names = [f"{name} ({ratio:.2f})" for name, ratio in measured if ratio > 1]
    return [f"Dearer than an ordinary forward and backward pass: {', '.join(names)}.\n"] if names else []


def _ablation(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return []
    names = list(found["without"])
    shortcuts = found["without"][names[0]]
    return [
        "\n### What each shortcut is worth\n",
        "Time without it over time with all (`benchmarks/gradient_norms_ablation.py`, median of",
        f"{found['rounds']} rounds beside busy neighbours, good to about 0.1); 1 where a network has no use for it.\n",
        f"| without | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        *[
            " | ".join(["| " + one, *(f"{row[one]:.2f}" for row in found["without"].values())]) + " |"
            for one in shortcuts
        ],
    ]


def _unmeasured(rows: Mapping[str, Any]) -> list[str]:
    names = [setting.name for setting in dict.fromkeys((*TARGETS, *MODELS)) if setting.name not in rows]
    return [f"Not measured yet: {', '.join(names)}."] if names else []
