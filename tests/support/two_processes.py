"""What the processes of a distributed test run: spawned ones import it by name, so it lies beside no test."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from radcomp_plugins.distributed import distributed_step

TOTAL_RAYS = 12


class TinyField(nn.Module):
    """Two submodels, of which a ray meets one, a network that all share, and a parameter that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.submodels = nn.ParameterList([torch.randn(3, 4) for _ in range(2)])
        self.shared = nn.Linear(4, 3)
        self.unused = nn.Parameter(torch.randn(2))

    def losses(self, rays: Tensor, home: Tensor, target: Tensor) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
        """Losses of rays [N, 3] in submodels [N]: means over rays, and a decay of every parameter of the submodels."""
        features = rays.new_zeros(len(rays), 4)
        for index, weight in enumerate(self.submodels):
            mine = home == index
            if mine.any():
                features[mine] = rays[mine] @ weight
        rgb = self.shared(features).sigmoid()
        decay = torch.stack([weight.square().mean() for weight in self.submodels]).sum()
        losses = {"rgb": (rgb - target).square().mean(), "decay": 0.1 * decay}
        return {"rgb": rgb, "other": self.unused * 2}, losses, {"rays": len(rays)}


def make_case(seed: int) -> tuple[TinyField, tuple[Tensor, Tensor, Tensor]]:
    """A field, and a batch whose first half lies in submodel 0, and whose second half in submodel 1."""
    torch.manual_seed(seed)
    field = TinyField()
    torch.manual_seed(5)
    home = torch.arange(TOTAL_RAYS) // (TOTAL_RAYS // 2)
    return field, (torch.randn(TOTAL_RAYS, 3), home, torch.rand(TOTAL_RAYS, 3))


def take_steps(field: TinyField, step: Any, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Any]:
    """Losses of two steps of plain descent, and the last step's gradients and the parameters after it."""
    shown = []
    for _ in range(2):
        field.zero_grad()
        outputs, losses, metrics = step(*batch)
        assert outputs["rgb"].shape == (metrics["rays"], 3)
        torch.stack(list(losses.values())).sum().backward()
        shown.append({name: loss.item() for name, loss in losses.items()})
        with torch.no_grad():
            for parameter in field.parameters():
                if parameter.grad is not None:
                    parameter -= 0.5 * parameter.grad
    gradients = {name: p.grad for name, p in field.named_parameters()}
    return {"losses": shown, "gradients": gradients, "parameters": dict(field.named_parameters())}


def train_tiny_field(local_rank: int, world_size: int, config: Any, global_rank: int = 0) -> None:
    """A process of the launcher: steps on its share of the batch, saved to config.folder."""
    field, batch = make_case(seed=global_rank)
    share = TOTAL_RAYS // world_size
    mine = slice(global_rank * share, (global_rank + 1) * share)
    step = distributed_step(field, field.losses, world_size)
    result = take_steps(field, step, tuple(part[mine] for part in batch))  # type: ignore[arg-type]
    result["stock"] = wrap_as_stock_pipelines_do(local_rank)
    torch.save(result, Path(config.folder) / f"rank{global_rank}.pt")


def wrap_as_stock_pipelines_do(local_rank: int) -> Tensor:
    """Gradient of a model in the DDP of nerfstudio's pipelines, called as VanillaPipeline calls it."""
    import torch.distributed as dist
    from nerfstudio.pipelines import base_pipeline as stock

    base_pipeline: Any = stock
    model = nn.Linear(2, 1)
    wrapped = base_pipeline.DDP(model, device_ids=[local_rank], find_unused_parameters=True)
    dist.barrier(device_ids=[local_rank])
    assert base_pipeline.module_wrapper(wrapped) is model
    wrapped(torch.full((1, 2), float(local_rank))).sum().backward()
    assert model.weight.grad is not None
    return model.weight.grad
