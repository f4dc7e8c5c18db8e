"""Removes from an image's libraries what a processor never opens: the CUDA build's files for graphics cards.

The public index has torch for x86-64 only as a CUDA build. Linking makes the loader open some of its libraries even
where there is no card, so the ones to keep are not guessed: a training step is run, and what the process has open at its
end stays. The step is then run again without the rest; if that fails, so does the build.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

LIBRARIES = Path(sysconfig.get_paths()["purelib"])
FOR_CARDS = ("nvidia", "cuda")
COMPILERS = ("triton", "torch/include")  # of kernels and extensions; torch runs without them

STEP = """
import torch, torchvision
model = torchvision.models.resnet18(num_classes=3)
optimizer = torch.optim.AdamW(model.parameters())
loss = torch.nn.functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.tensor([0, 1, 2, 0]))
loss.backward()
optimizer.step()
assert torch.isfinite(torch.linalg.svdvals(torch.randn(8, 8))).all()
assert torchvision.ops.nms(torch.tensor([[0.0, 0, 1, 1]]), torch.ones(1), 0.5).tolist() == [0]
print(*{line.split(maxsplit=5)[-1] for line in open("/proc/self/maps") if ".so" in line}, sep="", end="")
"""


def opened() -> set[Path]:
    """The shared libraries that a training step has open, their links followed."""
    step = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True)
    if step.returncode:
        sys.exit(f"A training step failed:\n{step.stderr}")
    return {Path(line.strip()).resolve() for line in step.stdout.splitlines()}


def remove_unopened(folder: Path, kept: set[Path]) -> int:
    """Remove files below `folder` that are not in `kept`; the bytes gained."""
    gained = 0
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.is_symlink() and ".so" in file.name and file.resolve() not in kept:
            gained += file.stat().st_size
            file.unlink()
    return gained


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    gained = 0
    for name in COMPILERS:
        folder = LIBRARIES / name
        gained += size(folder) if folder.exists() else 0
        shutil.rmtree(folder, ignore_errors=True)
    kept = opened()
    gained += sum(remove_unopened(LIBRARIES / name, kept) for name in FOR_CARDS)
    opened()
    sys.stdout.write(f"{gained / 1e9:.1f} GB removed\n")


if __name__ == "__main__":
    main()
