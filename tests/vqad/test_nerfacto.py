"""nerfacto reads codebooks: it trains, its parameters are grouped, its checkpoint opens."""

from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox

from radcomp_plugins.vqad.nerfacto import VqadNerfactoModel, VqadNerfactoModelConfig


def small_model(**changes: Any) -> VqadNerfactoModel:
    config = VqadNerfactoModelConfig(
        implementation="torch",
        coarsest_level=2,
        finest_level=4,
        bits=4,
        num_proposal_samples_per_ray=(16, 12),
        num_nerf_samples_per_ray=8,
        use_appearance_embedding=False,
        disable_scene_contraction=True,
        near_plane=1.0,
        far_plane=5.0,
        **changes,
    )
    return VqadNerfactoModel(config, scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])), num_train_data=4)


def bundle(count: int) -> RayBundle:
    g = torch.Generator().manual_seed(0)
    origins = 3.0 * torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=1)
    directions = torch.nn.functional.normalize(0.5 * torch.randn(count, 3, generator=g) - origins, dim=1)
    ones = torch.ones(count, 1)
    return RayBundle(origins, directions, 1e-4 * ones, camera_indices=ones.long(), nears=ones, fars=5.0 * ones)


def test_it_learns_through_codebooks() -> None:
    model = small_model()
    target = torch.tensor([0.9, 0.2, 0.1]).expand(128, 3)
    groups = model.get_param_groups()
    rates = {"fields": 1e-2, "proposal_networks": 1e-2, "vq_grid": 0.1}
    optimizer = torch.optim.Adam([{"params": groups[name], "lr": rate} for name, rate in rates.items()])
    encoding = model.field.mlp_base[0]  # type: ignore[index]
    before, history = encoding.current_indices(), []
    model.train()
    for _ in range(25):
        # The camera optimizer writes into the rays it is given.
        outputs = model(bundle(128))
        loss = sum(
            model.get_loss_dict(outputs, {"image": target}, model.get_metrics_dict(outputs, {"image": target})).values()
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        history.append(float(loss))
    assert history[-1] < 0.5 * history[0]
    assert not torch.equal(encoding.current_indices(), before)


def test_groups_share_no_parameter() -> None:
    model = small_model()
    groups = model.get_param_groups()
    grid = {id(p) for p in groups["vq_grid"]}
    assert len(grid) == 3
    assert not grid & {id(p) for p in groups["fields"]}
    everything = {id(p) for group in groups.values() for p in group}
    assert everything >= {id(p) for p in model.field.parameters()}


def test_checkpoint_opens() -> None:
    model, other = small_model(), small_model()
    other.load_state_dict(model.state_dict())
    model.eval()
    other.eval()
    with torch.no_grad():
        ours, theirs = model(bundle(20))["rgb"], other(bundle(20))["rgb"]
    assert torch.equal(ours, theirs)
