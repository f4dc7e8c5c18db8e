"""One training run by several processes, each with a part of every batch, and the steps of one process.

All draw the same batches and look at their part of each. Logits and pooled levels are then put together, so that the losses,
the pairs of the ranking loss among them, are those of the whole batch in every process. A part's gradient counts as often
as there are processes, since DistributedDataParallel takes the mean of the main model's gradients; what comes after the
whole batch (the loss-prediction module, the optimiser) is the same everywhere and needs no exchange. Batch normalisation
takes its averages over all parts.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lplgrad_backend.lplgrad.network import Looked, Network
from lplgrad_backend.lplgrad.objective import full


class Team(Protocol):
    """Those who train one network."""

    @property
    def rank(self) -> int:
        """Which of them this process is, from 0 on."""

    def part(self, whole: Tensor) -> Tensor:
        """This process's part of a batch [B, …]."""

    def look(self, network: Network, images: Tensor) -> Looked:
        """What a network in training says of a batch [B, 3, S, S], of which this process looks at its part."""


class Alone:
    """One process."""

    rank = 0

    def part(self, whole: Tensor) -> Tensor:
        """See `Team`."""
        return whole

    def look(self, network: Network, images: Tensor) -> Looked:
        """See `Team`."""
        return network.look(images)


ALONE = Alone()


class Together:
    """The processes of torch.distributed's default group, with the same network each. Its batch normalisation must be
    shared (`share_batch_norm`), and which parameters are trained must be settled before the first look."""

    def __init__(self) -> None:
        self._main: dict[Network, nn.Module] = {}

    @property
    def rank(self) -> int:
        """See `Team`."""
        return dist.get_rank()

    def part(self, whole: Tensor) -> Tensor:
        """See `Team`. Parts differ by one at most; some are empty where a batch has fewer images than there are
        processes."""
        return whole.tensor_split(dist.get_world_size())[dist.get_rank()]

    def look(self, network: Network, images: Tensor) -> Looked:
        """See `Team`."""
        if network not in self._main:
            self._main[network] = DistributedDataParallel(_Looks(network), forward_sync_buffers=False)
        logits, features, *pooled = self._main[network](self.part(images))
        count = len(images)
        return Looked(whole(logits, count), whole(features, count), tuple(whole(level, count) for level in pooled))


class _Looks(nn.Module):
    """`Network.look` as a module that has the main model's parameters alone."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.main = network.main
        self._network = [network]  # in a list: no child of this module

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        looked = self._network[0].look(images)
        return looked.logits, looked.features, *looked.pooled


def whole(part: Tensor, count: int) -> Tensor:
    """The batch [count, …] of which every process has a part [n, …], as `Together.part` makes them; float32."""
    result: Tensor = _Whole.apply(full(part), count)
    return result


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, part: Tensor, count: int) -> Tensor:
        sizes = [len(one) for one in torch.arange(count).tensor_split(dist.get_world_size())]
        start = sum(sizes[: dist.get_rank()])
        context.own = slice(start, start + len(part))
        batch = part.new_zeros(count, *part.shape[1:])
        batch[context.own] = part
        dist.all_reduce(batch)  # the others' rows are zeros here
        return batch

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][context.own] * dist.get_world_size(), None


class _Rows(torch.autograd.Function):
    """A row [K] of each process, in all of them: [processes, K]."""

    @staticmethod
    def forward(context: Any, row: Tensor) -> Tensor:
        rows = row.new_zeros(dist.get_world_size(), len(row))
        rows[dist.get_rank()] = row
        dist.all_reduce(rows)  # the others' rows are zeros here
        return rows

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total[dist.get_rank()]


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the parts of all processes; torch's own of that kind works on graphics cards alone."""

    def forward(self, input: Tensor) -> Tensor:
        """[N, C, H, W], N may be 0."""
        if not self.training:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return self._normalised(full(input))

    def _normalised(self, images: Tensor) -> Tensor:
        count = images.numel() // images.shape[1]
        own = images.sum((0, 2, 3)) / max(1, count)
        around = (images - own.view(-1, 1, 1)).square().sum((0, 2, 3))
        # one exchange: means and squares around them are put together as Chan, Golub and LeVeque (1979) do
        rows: Tensor = _Rows.apply(torch.cat([own.new_tensor([count]), own, around]))
        counts, means, squares = rows.split([1, len(own), len(own)], dim=1)
        total = counts.sum().detach()
        mean = (counts * means).sum(0) / total
        variance = (squares + counts * (means - mean).square()).sum(0) / total
        self._remember(mean.detach(), variance.detach() * (total / (total - 1).clamp(min=1)))
        scale = torch.rsqrt(variance + self.eps) * self.weight
        normalised: Tensor = (images - mean.view(-1, 1, 1)) * scale.view(-1, 1, 1) + self.bias.view(-1, 1, 1)
        return normalised

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        counted = cast(Tensor, self.num_batches_tracked).add_(1)
        share = 1 / counted.item() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


def share_batch_norm(module: nn.Module) -> None:
    """Replace every batch normalisation by a shared one with the same parameters and averages.

    Raises:
        ValueError: one is of a kind that is not known here.
    """
    for name, child in list(module.named_modules()):
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            if type(child) is not nn.BatchNorm2d or not child.affine or not child.track_running_stats:
                raise ValueError(f"{name}, a {type(child).__name__}, cannot be shared by several processes.")
            module.set_submodule(name, _shared(child))


def _shared(norm: nn.BatchNorm2d) -> SharedBatchNorm2d:
    shared = SharedBatchNorm2d(norm.num_features, norm.eps, norm.momentum)
    shared.weight, shared.bias = norm.weight, norm.bias
    for name, buffer in norm.named_buffers():
        setattr(shared, name, buffer)
    return shared.train(norm.training)
