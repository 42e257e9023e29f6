"""The model: levels drawn, voxels pruned and split, memory refused, losses, panel."""

from typing import Any

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from tiny_vqad import rays_at_sphere, sphere_octree

from radcomp_plugins.core.octree import Octree
from radcomp_plugins.errors import InputError
from radcomp_plugins.vqad import losses
from radcomp_plugins.vqad import model as model_module
from radcomp_plugins.vqad.config import VqadModelConfig
from radcomp_plugins.vqad.datamanager import BACKGROUND
from radcomp_plugins.vqad.model import VqadModel

BOX = torch.tensor([[-1.0] * 3, [1.0] * 3])


def make_model(metadata: Any = None, **changes: Any) -> VqadModel:
    settings = {"coarsest_level": 2, "finest_level": 4, "start_level": 3, "hidden_dim": 32, "bits": 4, **changes}
    return VqadModel(VqadModelConfig(**settings), scene_box=SceneBox(BOX), num_train_data=4, metadata=metadata or {})


def started(**changes: Any) -> VqadModel:
    model = make_model(**changes)
    model.start(sphere_octree(2, 4), BOX, box_is_loose=False)
    return model


def bundle(count: int) -> RayBundle:
    origins, directions = rays_at_sphere(count)
    return RayBundle(origins, directions, torch.ones(count, 1))


def test_levels_are_drawn_with_doubling_chances() -> None:
    model = started()
    drawn = torch.tensor([model.draw_level() for _ in range(4000)])
    share = torch.bincount(drawn)[2:].double() / 4000
    assert torch.allclose(share, torch.tensor([1 / 7, 2 / 7, 4 / 7]).double(), atol=0.04)
    model.config.lod_growth = 1e9
    assert {model.draw_level() for _ in range(50)} == {4}


@pytest.mark.parametrize("compression", ["logits", "latent", "fixed", "full"])
@pytest.mark.parametrize("quantise_from", [0.0, 0.5])
def test_training_learns(compression: Any, quantise_from: float) -> None:
    model = started(compression=compression, quantise_from=quantise_from, reshape_at=())
    rays, steps = bundle(300), 30
    image = torch.cat([0.5 + 0.5 * rays.directions, torch.ones(300, 1)], dim=1)
    rates = {"grid": 0.05, "codebook": 0.05, "decoder": 1e-2}
    groups = model.get_param_groups()
    optimizer = torch.optim.Adam([{"params": groups[name], "lr": rate} for name, rate in rates.items()], eps=1e-15)
    history = []
    model.train()
    for step in range(steps):
        if model.advance(step, steps):
            optimizer.state.clear()
        outputs = model(rays)
        found = model.get_loss_dict(outputs, {"image": image})
        optimizer.zero_grad()
        sum(found.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
        history.append(float(found["rgb_loss"]))
    assert model.field.encoding.mode == compression
    assert sum(history[-5:]) < 0.7 * sum(history[:5])
    assert ("commitment_loss" in found) == (compression == "latent")


def test_pruning_keeps_what_rays_found_something_in() -> None:
    model = started()
    voxels = model.field.octree.voxels[-1]
    model.seen[::3] = 0.5
    model.samples_seen = 10**6
    model.reshape()
    assert (model.field.octree.voxels[-1] == voxels[::3]).all()
    assert len(model.seen) == len(voxels[::3]) and not bool(model.seen.any()) and model.samples_seen == 0


def test_what_nobody_looked_at_is_not_pruned_too_soon() -> None:
    model = started()
    count = len(model.seen)
    model.seen[:5] = 1e-4
    model.reshape()
    assert len(model.seen) == count - 5


def test_nothing_seen_at_all_leaves_the_octree() -> None:
    model = started()
    count, model.samples_seen = len(model.seen), 10**6
    model.reshape()
    assert len(model.seen) == count


def test_coarse_to_fine() -> None:
    model = make_model(compression="latent", quantise_from=0.9, reshape_at=(0.1, 0.2, 0.3))
    model.start(Octree.dense(2, 3), BOX, box_is_loose=True)
    model.train()
    finests, sides = [], []
    for step in range(10):
        model.advance(step, 10)
        octree = model.field.octree
        finests.append(octree.finest)
        sides.append(float(model.field.side))
        # Something is found around the middle only.
        where = torch.from_numpy(octree.voxels[-1]).float()
        model.seen = (where < where.median()).float() if octree.finest == 3 else torch.ones(len(model.seen))
        model.samples_seen = 10**6
    assert finests == [3, 3, 4, 4, 4, 4, 4, 4, 4, 4]
    assert sides[0] == 2.0 and sides[1] <= 2.0
    assert model.field.encoding.mode == "latent"
    assert int(model.reshapes) == 3


def test_seen_is_the_largest_weight_per_voxel() -> None:
    model = started()
    model.train()
    model.config.lod_growth = 1e9
    outputs = model(bundle(200))
    drawn = outputs["drawn"]
    first = model.field.octree.node_starts[-2]
    for node in drawn.nodes.unique()[:20].tolist():
        if node >= 0:
            assert float(model.seen[node - first]) == float(drawn.weights[drawn.nodes == node].max())


def test_more_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "free_memory", lambda device: 10**6)
    with pytest.raises(InputError, match=r"vertices with 8 bits each \(logits\) need"):
        started(bits=8, compression="logits")


def test_checkpoint_round_trip() -> None:
    model, other = started(compression="latent", quantise_from=0.0), make_model()
    other.load_state_dict(model.state_dict())
    assert bool(other.started) and other.field.encoding.mode == "latent"
    model.eval()
    other.eval()
    with torch.no_grad():
        assert torch.equal(model(bundle(50))["rgb"], other(bundle(50))["rgb"])


@pytest.mark.parametrize(("name", "named", "wanted"), [("auto", None, 0.0), ("auto", 1.0, 1.0), ("white", None, 1.0)])
def test_backgrounds(name: Any, named: float | None, wanted: float) -> None:
    metadata = {} if named is None else {BACKGROUND: torch.full((3,), named)}
    assert make_model(metadata, background_color=name).background().tolist() == [wanted] * 3


def test_losses_by_hand() -> None:
    rgb, accumulation = torch.tensor([[0.2, 0.0, 0.0]]), torch.tensor([0.25])
    assert torch.allclose(
        losses.on_background(rgb, accumulation, torch.tensor([0.4, 0.4, 0.0])), torch.tensor([[0.5, 0.3, 0.0]])
    )
    pixel = torch.tensor([[1.0, 0.5, 0.0, 0.5]])
    assert torch.allclose(losses.photo_on_background(pixel, torch.ones(3)), torch.tensor([[1.0, 0.75, 0.5]]))
    assert torch.equal(losses.photo_on_background(pixel[:, :3], torch.ones(3)), pixel[:, :3])
    assert float(losses.colour(rgb, torch.zeros(1, 3))) == pytest.approx(0.04 / 3)


def test_panel_changes_nothing_at_first_and_shows_indices() -> None:
    model = started(compression="logits", quantise_from=0.0, density_bias=4.0)
    model.eval()
    with torch.no_grad():
        plain = model(bundle(60))["rgb"]
        model.panel.level.value = 2
        coarse = model(bundle(60))["rgb"]
        model.panel.level.value = 4
        model.panel.false_colour.value = True
        shown = model(bundle(60))["rgb"]
        model.panel.false_colour.value = False
        assert torch.equal(model(bundle(60))["rgb"], plain)
    assert not torch.equal(plain, coarse)
    assert len(shown.mul(1000).round().unique(dim=0)) > 3 and not torch.equal(shown, plain)
    assert "kB" in model.panel.status.value and "of 16 codes" in model.panel.status.value


def test_predicted_bytes() -> None:
    model = started(compression="logits", quantise_from=0.0)
    octree = model.field.octree
    decoder = 2 * sum(p.numel() for p in model.field.decoder.parameters())
    wanted = octree.vertex_starts[1] / 2 + 16 * 16 * 2 + decoder + 8**2 / 8
    assert model.predicted_bytes(2) == pytest.approx(wanted, abs=1 + len(octree.voxels[0]))
    assert model.predicted_bytes(2) < model.predicted_bytes(3) < model.predicted_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 9},
        {"coarsest_level": 5, "finest_level": 4},
        {"finest_level": 11},
        {"quantise_from": 1.0},
        {"reshape_at": (0.5, 0.2)},
        {"lod_growth": 0.5},
        {"samples_per_voxel": 0},
    ],
)
def test_configs_that_cannot_work(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        VqadModelConfig(**changes)
