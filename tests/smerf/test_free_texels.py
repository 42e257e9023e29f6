"""Texels of their own: nothing changes when they are let go, all that is needed is there, and they train."""

import numpy as np
import torch
from analytic_teacher import orbit_rays
from tiny_students import ball_pool, small_model

from radcomp_plugins.smerf.corners import corners_of
from radcomp_plugins.smerf.free_texels import FreeTexels, codes_of_cells
from radcomp_plugins.smerf.layout import Layout
from radcomp_plugins.smerf.model import SmerfModel


def test_codes_cover_every_sample() -> None:
    layout = Layout(64, 16, 2, 0.8, (0, 7))
    occupied = np.random.default_rng(0).random((2, 16, 16, 16)) > 0.99
    codes = codes_of_cells(occupied, layout)
    assert bool((np.diff(codes) > 0).all())
    places = np.argwhere(occupied)
    chosen = places[np.random.default_rng(1).integers(len(places), size=3000)]
    points = (chosen[:, 1:] + np.random.default_rng(2).random((3000, 3))) / 16 * 4 - 2
    corners = corners_of(torch.from_numpy(points).float(), torch.from_numpy(chosen[:, 0]), layout)
    assert bool(np.isin(corners.codes.numpy(), codes).all())


def test_nothing_changes_when_texels_are_let_go(trained_student: SmerfModel) -> None:
    model = small_model()
    model.load_state_dict(trained_student.state_dict())
    model.eval()
    bundle = orbit_rays(100)
    with torch.no_grad():
        before = model.get_outputs(bundle)["rgb"]
        model.field.let_go(torch.from_numpy(codes_of_cells(model.occupancy.cells.numpy(), model.layout)))
        after = model.get_outputs(bundle)["rgb"]
    assert len(model.field.free) > 1000
    torch.testing.assert_close(before, after)


def test_unknown_texels_come_from_the_network() -> None:
    table = FreeTexels()
    table.let_go(torch.tensor([3, 8, 20]), torch.arange(24.0).view(3, 8))
    asked: list[torch.Tensor] = []

    def otherwise(codes: torch.Tensor) -> torch.Tensor:
        asked.append(codes)
        return torch.full((len(codes), 8), -1.0)

    found = table.look_up(torch.tensor([20, 4, 3, 99]), otherwise)
    assert asked[0].tolist() == [4, 99]
    assert found[:, 0].tolist() == [16.0, -1.0, 0.0, -1.0]


def test_another_table_is_looked_up_after_loading_or_letting_go_again() -> None:
    def first_channel(table: FreeTexels) -> list[float]:
        codes = torch.tensor([3, 8, 20])
        return table.look_up(codes, lambda codes: torch.full((len(codes), 8), -1.0))[:, 0].tolist()

    table, other = FreeTexels(), FreeTexels()
    table.let_go(torch.tensor([3, 8, 20]), torch.arange(24.0).view(3, 8))
    assert first_channel(table) == [0.0, 8.0, 16.0]
    other.let_go(torch.tensor([8, 20]), torch.full((2, 8), 5.0))
    table.load_state_dict(other.state_dict())
    assert first_channel(table) == [-1.0, 5.0, 5.0]
    table.let_go(torch.tensor([3, 8]), torch.full((2, 8), 7.0))
    assert first_channel(table) == [7.0, 7.0, -1.0]


def test_they_train_and_the_network_rests() -> None:
    torch.manual_seed(0)
    model = small_model(free_texels_from=0.5)
    pool = ball_pool(model, 64)
    with torch.no_grad():
        model.occupancy.cells[:, 12:20, 12:20, 12:20] = True
        model.occupancy.measure()
    model.train()
    optimizers = {name: torch.optim.Adam(group, lr=0.02) for name, group in model.get_param_groups().items()}
    values = []
    for step in range(10):
        model.set_progress(step, 10)
        assert (len(model.field.free) > 0) == (step >= 5)
        loss = torch.stack(list(model.get_loss_dict(model.taught_outputs(pool), {}).values())).sum()
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        loss.backward()
        if step >= 5:
            assert model.field.grids[0].table.grad is None
        for optimizer in optimizers.values():
            optimizer.step()
        values.append(model.field.free.values.detach().clone())
    assert float((values[-1] - values[5]).abs().max()) > 0.01


def test_checkpoint_brings_them_back(trained_student: SmerfModel) -> None:
    model, other = small_model(), small_model()
    model.load_state_dict(trained_student.state_dict())
    model.field.let_go(torch.arange(5, 500))
    held = other.field.free.values
    other.load_state_dict(model.state_dict())
    assert other.field.free.values is held  # an optimiser that held it holds it still
    assert torch.equal(other.field.free.values, model.field.free.values)
    assert torch.equal(other.field.free.codes, torch.arange(5, 500))
