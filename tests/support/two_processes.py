"""What the processes of a distributed test run: spawned ones import it by name, so it lies beside no test."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radcomp_plugins import seeded_rays
from radcomp_plugins.distributed import distributed_step
from radcomp_plugins.smerf import pipeline as smerf_pipeline

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


def student_config(output_dir: Path, teacher: Path) -> Any:
    """smerf-tiny as small as it gets, eight submodels' room, on the dataset of its teacher."""
    from tiny_runs import run_config

    config = run_config("smerf-tiny", output_dir, max_num_iterations=3, steps_per_save=10**9)
    config.machine.device_type = "cpu"
    config.steps_per_eval_batch = 10**9
    settings = {
        "submodels_per_axis": 2, "submodel_scale_factor": 0.8, "triplane_resolution": 32, "sparse_resolution": 16,
        "hash_levels": 2, "hash_max_res": 32, "hash_log2_size": 8, "hidden_width": 8, "deferred_grid": 2,
        "deferred_width": 4, "prune_every": 1, "prune_weight": 0.01, "sparsity_samples": 64, "free_texels_from": 1.0,
    }  # fmt: skip
    for name, value in settings.items():
        setattr(config.pipeline.model, name, value)
    config.pipeline.teacher = teacher
    config.pipeline.batch_patches, config.pipeline.pool_patches, config.pipeline.pool_steps = 8, 16, 1
    config.pipeline.occupancy_rays, config.pipeline.empty_share = 2 * 9 * 16, 1.0
    config.pipeline.occupancy_threshold = 2e-4  # the teacher is hardly trained, and sees little anywhere
    return config


def train_student(local_rank: int, world_size: int, config: Any, global_rank: int = 0) -> None:
    """A process of the launcher: two steps, recorded to the run's folder, then the whole training."""
    from nerfstudio.scripts.train import _set_random_seed

    _set_random_seed(config.machine.seed + global_rank)
    random.seed(0)  # nerfstudio caches the images in an order that it draws
    trainer = config.setup(local_rank=local_rank, world_size=world_size)
    trainer.setup()
    steps = []
    for step in range(2):
        _, losses, _ = trainer.train_iteration(step)
        steps.append(record(trainer.pipeline.model, losses))
    trainer.train()
    parameters = {name: p.detach() for name, p in trainer.pipeline.model.named_parameters()}
    torch.save({"steps": steps, "parameters": parameters}, trainer.base_dir / f"rank{global_rank}.pt")


def train_student_alone(config: Any) -> list[dict[str, Any]]:
    """Two steps of one process on the rays of two: each rank's in turn, their gradients added up."""
    from nerfstudio.scripts.train import _set_random_seed

    config.pipeline.occupancy_rays //= 2  # of each rank
    _set_random_seed(config.machine.seed)
    random.seed(0)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    pipeline, model = trainer.pipeline, trainer.pipeline.model
    with as_process(1):
        pipeline.find_scene()
    pipeline.train()
    steps = []
    for step in range(2):
        trainer.optimizers.zero_grad_all()
        mean: dict[str, Tensor] = {}
        for rank in range(2):
            pipeline._replay[0].forget()
            prune = model.occupancy.prune
            if rank == 1:  # cells are pruned once a step, by what both have seen
                model.occupancy.prune = lambda: None
            with as_process(rank):
                _, losses, _ = pipeline.losses(step)
            model.occupancy.prune = prune
            (torch.stack(list(losses.values())).sum() / 2).backward()
            mean = {name: mean.get(name, 0) + loss.detach() / 2 for name, loss in losses.items()}
        steps.append(record(model, mean))
        trainer.optimizers.optimizer_step_all()
    return steps


@contextmanager
def as_process(rank: int) -> Iterator[None]:
    """Within the block the rays drawn are those of the process of this rank."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (smerf_pipeline, seeded_rays):
            patch.setattr(module, "process_index", lambda: rank)
        yield


def record(model: nn.Module, losses: dict[str, Tensor]) -> dict[str, Any]:
    """Losses and gradients of a step."""
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"losses": {name: float(loss) for name, loss in losses.items()}, "gradients": gradients}
