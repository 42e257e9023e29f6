"""The model: levels drawn, voxels pruned and split, memory refused, losses, panel."""

from typing import Any

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from tiny_vqad import rays_at_sphere, sphere_octree

from radcomp_plugins.core import morton
from radcomp_plugins.core.octree import Octree
from radcomp_plugins.errors import InputError
from radcomp_plugins.vqad import losses
from radcomp_plugins.vqad import model as model_module
from radcomp_plugins.vqad.config import VqadModelConfig
from radcomp_plugins.vqad.datamanager import BACKGROUND
from radcomp_plugins.vqad.model import VqadModel
from radcomp_plugins.vqad.render import Drawn

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
    model.visits += 100
    model.reshape()
    assert (model.field.octree.voxels[-1] == voxels[::3]).all()
    assert len(model.seen) == len(voxels[::3]) and not bool(model.seen.any()) and not bool(model.visits.any())


def test_what_nobody_looked_at_is_not_pruned_too_soon() -> None:
    model = started()
    count = len(model.seen)
    model.visits[:8] = torch.tensor([1.0, 1.0, 7.0, 8.0, 9.0, 9.0, 50.0, 100.0])
    model.reshape()
    assert len(model.seen) == count - 5


def test_what_is_hidden_is_pruned_once_the_rest_has_been_looked_at() -> None:
    model = started()
    count = len(model.seen)
    model.visits[:] = 20.0
    model.seen[:] = 0.5
    model.visits[:7], model.seen[:7] = 0.0, 0.0
    model.visits[7:9], model.seen[7:9] = 3.0, 0.0
    model.reshape()
    assert len(model.seen) == count - 7


def note(model: VqadModel, weights: list[float], places: list[int], ray_offsets: list[int]) -> None:
    """Note samples of rays, one weight and one finest voxel each; -1 is none."""
    nodes = torch.tensor(places) + model.field.octree.node_starts[-2]
    nodes[torch.tensor(places) < 0] = -1
    rays = len(ray_offsets) - 1
    rgb, ray = torch.zeros(rays, 3), torch.zeros(rays)
    offsets = torch.tensor(ray_offsets)
    model._note_seen(Drawn(rgb, ray, ray, torch.tensor(weights), nodes, rays, len(weights), offsets))


def test_visits_count_samples() -> None:
    model = started()
    note(model, [0.1, 0.2, 0.4, 0.9, 0.3], [0, 2, 2, -1, 2], [0, 5])
    assert model.visits[:3].tolist() == [1.0, 0.0, 3.0] and model.seen[:3].tolist() == pytest.approx([0.1, 0.0, 0.4])
    assert float(model.visits.sum()) == 4.0


def test_what_lies_far_below_the_heaviest_sample_of_its_ray_is_not_seen() -> None:
    model = started(prune_share=0.25)
    # A ray without samples is between the two; in fog all samples are alike.
    note(model, [0.1, 0.8, 0.2, 0.02, 0.02], [0, 1, 2, 3, 4], [0, 3, 3, 5])
    assert model.seen[:5].tolist() == pytest.approx([0.0, 0.8, 0.2, 0.02, 0.02])
    assert model.visits[:5].tolist() == [1.0] * 5


def test_nothing_seen_at_all_leaves_the_octree() -> None:
    model = started()
    count = len(model.seen)
    model.visits += 100
    model.reshape()
    assert len(model.seen) == count


def test_coarse_to_fine() -> None:
    """The box is drawn around a small ball until it is tight, only then are voxels split."""
    model = make_model(compression="latent", quantise_from=0.9, reshape_at=(0.1, 0.2, 0.3, 0.4, 0.5))
    model.start(Octree.dense(2, 3), BOX, box_is_loose=True)
    model.train()
    finests, sides = [], []
    for step in range(10):
        model.advance(step, 10)
        octree = model.field.octree
        finests.append(octree.finest)
        sides.append(float(model.field.side))
        middle = (torch.from_numpy(morton.decode(octree.voxels[-1])) + 0.5) / 2**octree.finest
        world = model.field.box[0] + middle * (model.field.box[1] - model.field.box[0])
        model.seen = (world.norm(dim=1) < 0.3).float()
        model.visits += 100
    assert sides[:2] == [2.0, 1.0] and sides[-1] == sides[3] < 0.95 and sides == sorted(sides, reverse=True)
    assert finests == [3, 3, 3, 4, 4, 4, 4, 4, 4, 4], finests
    assert not bool(model.box_is_loose)
    assert model.field.encoding.mode == "latent"
    assert int(model.reshapes) == 5


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
