"""The parts of the speed benchmark that decide what is timed, on a toy scene."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kilo_scenes import shell_scene

from benchmarks import kilonerf_speed
from benchmarks.kilonerf_speed import KilonerfSpeed, View, drawn_row, near_view, scaled, seconds_of, untrained
from radcomp_plugins.kilonerf.render_cpu import CpuRenderer
from radcomp_plugins.kilonerf.scene import NetworkShape

VIEW = View(np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4.0]]), 20.0, 20)


@pytest.fixture(scope="module")
def renderer():
    return CpuRenderer(shell_scene(NetworkShape(width=8, position_octaves=2))[0])


def test_medians_leave_the_warm_up_out(monkeypatch):
    clock = iter([0.0, 10.0, 11.0, 20.0, 23.0, 30.0, 35.0])
    monkeypatch.setattr(kilonerf_speed, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert seconds_of(lambda: None, 3, 1) == 3.0


def test_a_share_of_the_rays_is_scaled_up(monkeypatch):
    clock = iter([1.0, 3.0])
    monkeypatch.setattr(kilonerf_speed, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    drawn = []
    row = scaled(lambda rays: drawn.append(len(rays)), VIEW, 0.1)
    assert drawn == [40, 40] and row == {"milliseconds": 20_000.0, "rays_drawn": 40}


def test_rays_of_a_bundle_are_those_of_the_picture(renderer):
    bundle = VIEW.bundle()
    rays = renderer.rays(bundle.origins.numpy(), bundle.directions.numpy())
    picture = renderer.picture(*VIEW.camera())
    same = rays.samples == picture.samples
    assert same.mean() > 0.97 and picture.samples.max() > 0
    assert len(VIEW.bundle(0.25)) == 100


def test_a_row_says_what_a_frame_took(renderer):
    row = drawn_row(renderer, VIEW, 1)
    assert 0 < row["rays_with_samples"] <= row["rays_that_meet_occupied_box"] <= 1
    assert row["samples"] <= row["evaluated"] and row["samples_per_ray"] == pytest.approx(row["samples"] / 400)
    assert sum(row["share_of_thread_time"].values()) == pytest.approx(1)


def test_the_near_view_is_filled(renderer):
    near = near_view(renderer, VIEW)
    shares = [(renderer.picture(*view.camera()).samples > 0).mean() for view in (VIEW, near)]
    assert shares[0] < 0.6 <= shares[1]


def test_ablation_names_every_part(renderer):
    rows = KilonerfSpeed(asset=None).ablation(renderer, VIEW)  # type: ignore[arg-type]
    assert rows["without skipping"]["evaluated"] > drawn_row(renderer, VIEW, 1)["evaluated"]
    assert rows["without termination"]["samples"] >= drawn_row(renderer, VIEW, 1)["samples"]
    assert rows["without the fused kernels"]["milliseconds"] > 0


@pytest.mark.slow
@torch.no_grad()
def test_vanilla_nerf_on_the_assets_samples(renderer):
    vanilla = untrained("vanilla-nerf", renderer.scene.grid.box)
    row = kilonerf_speed.vanilla_on_samples(vanilla, renderer, VIEW)
    assert (
        row["samples"] == renderer.rays(*(t.numpy() for t in kilonerf_speed.camera_rays(*VIEW.camera()))).samples.sum()
    )
    assert scaled(lambda rays: kilonerf_speed.in_chunks(vanilla, rays), VIEW, 0.02)["rays_drawn"] == 8
