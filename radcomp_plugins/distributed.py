"""A training step over several processes, with the losses and gradients of one process that has all their rays."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

StepResult = tuple[Any, dict[str, Tensor], dict[str, Any]]
"""Outputs, losses and metrics, as a pipeline's `get_train_loss_dict` returns them."""


def distributed_step(
    model: nn.Module, compute: Callable[..., StepResult], world_size: int
) -> Callable[..., StepResult]:
    """The function `compute` itself, or, for several processes, one that averages its losses and gradients over them.

    A pipeline hands its own losses in here and gives nerfstudio's `VanillaPipeline` a `world_size` of 1. Upstream would
    wrap the model's forward alone: then a parameter that a batch does not reach, but a regulariser computed after the
    forward does, has its gradient averaged too early, and torch ends the run. And upstream's checkpoints of several
    processes have other names in them; these have the names of one.

    Averages of equally large batches are the average over all of them, so losses must be means over rays or points, or
    free of the batch. Rank 0's initial parameters become everyone's.

    Args:
        model: has all parameters that train, already on its device.
        compute: one batch's outputs, losses and metrics; the same keys of losses in every process.
        world_size: number of processes; above 1, the process group is there.

    Returns:
        Called with the arguments of `compute`, in every process and followed by one backward pass each. Its losses have
        the mean over processes as their value and this process's gradient.
    """
    return compute if world_size == 1 else _DistributedStep(model, compute)


def process_index() -> int:
    """This process's number among all of them, on whatever machine; 0 where there is but one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def any_process(mask: Tensor) -> Tensor:
    """Where a mask is set in any of the processes; all of them have to ask. The mask itself where there is but one."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return mask
    found = mask.to(torch.uint8)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.bool()


class _Losses(nn.Module):
    """What DistributedDataParallel wraps: from a batch to its losses alone.

    It looks for parameters in all that a forward returns, and waits for a gradient of each of those it finds; outputs
    and metrics, which nothing is asked to train on, go past it.
    """

    def __init__(self, model: nn.Module, compute: Callable[..., StepResult]) -> None:
        super().__init__()
        self.model = model
        self.compute = compute
        self.past: tuple[Any, dict[str, Any]] = (None, {})

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        outputs, losses, metrics = self.compute(*args, **kwargs)
        self.past = (outputs, metrics)
        return losses


class _DistributedStep:
    def __init__(self, model: nn.Module, compute: Callable[..., StepResult]) -> None:
        self.losses = _Losses(model, compute)
        device = next(model.parameters()).device
        # A submodel that a process's rays do not meet gets no gradient there.
        self.wrapped = DistributedDataParallel(
            self.losses,
            device_ids=[device] if device.type == "cuda" else None,
            find_unused_parameters=True,
            # Buffers are not trained: what changes them keeps them equal (`any_process`), without a copy every step.
            broadcast_buffers=False,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> StepResult:
        losses: dict[str, Tensor] = self.wrapped(*args, **kwargs)
        outputs, metrics = self.losses.past
        self.losses.past = (None, {})
        names = sorted(losses)
        means = torch.stack([losses[name].detach() for name in names])
        dist.all_reduce(means)
        means /= dist.get_world_size()
        # Logged and returned is what one process would show; the gradients, DistributedDataParallel averages.
        shown = {name: losses[name] + (mean - losses[name].detach()) for name, mean in zip(names, means, strict=True)}
        return outputs, {name: shown[name] for name in losses}, metrics
