"""Photos that do not show the scene are told before training; those that do are not."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import lightgaussian_config, make_scene, orbit, train, views_of

from radcomp_plugins.errors import InputError
from radcomp_plugins.lightgaussian.belongs import check_photos, gain_over_flat, spread
from radcomp_plugins.splats.draw import picture
from radcomp_plugins.splats.evaluate import HeldOutView
from radcomp_plugins.splats.formats.ply import write_ply
from radcomp_plugins.splats.frames import rotate
from radcomp_plugins.splats.gaussians import Gaussians

WHITE = torch.ones(3)
HALF_TURN = (0.0, 1.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def photos(scene: Gaussians) -> list[HeldOutView]:
    return [HeldOutView(view, picture(scene, view, WHITE)) for view in views_of(orbit(4))]


def test_at_most_six_views_from_first_to_last() -> None:
    assert spread(100) == [0, 20, 40, 59, 79, 99] and spread(3) == [0, 1, 2] and spread(1) == [0] and spread(0) == []


def test_the_flat_picture_is_the_mean_of_each_photo(scene: Gaussians, photos: list[HeldOutView]) -> None:
    faint = dataclasses.replace(scene, sh0=scene.sh0 + 0.2)
    drawn, flat = gain_over_flat(faint, photos, WHITE)
    variance = torch.stack([p.image.double().var(dim=(0, 1), correction=0).mean() for p in photos])
    error = torch.stack([(p.image - picture(faint, p.view, WHITE)).double().square().mean() for p in photos])
    assert flat == pytest.approx(float(-10 * variance.log10().mean()), abs=1e-4)
    assert drawn == pytest.approx(float(-10 * error.log10().mean()), abs=1e-4)


def test_the_scene_itself_and_a_worse_copy_belong(scene: Gaussians, photos: list[HeldOutView]) -> None:
    check_photos(scene, photos, WHITE)
    check_photos(dataclasses.replace(scene, sh0=0.7 * scene.sh0), photos, WHITE)
    check_photos(scene, [], WHITE)


def test_another_scene_and_another_frame_do_not(scene: Gaussians, photos: list[HeldOutView]) -> None:
    for other in (make_scene(seed=5), rotate(scene, HALF_TURN), dataclasses.replace(scene, means=0.4 * scene.means)):
        with pytest.raises(InputError, match=r"of 4 training photos have .* dB, where one colour has .*expected 4 dB"):
            check_photos(other, photos, WHITE)


def test_photos_of_one_colour_say_nothing(photos: list[HeldOutView]) -> None:
    blank = [HeldOutView(p.view, torch.full_like(p.image, 0.5)) for p in photos]
    check_photos(make_scene(), blank, WHITE)


@pytest.mark.usefixtures("few_seeds")
def test_a_run_over_the_wrong_photos_ends_before_its_first_stage(
    tmp_path: Path, scene: Gaussians, blender_data: Path
) -> None:
    write_ply(tmp_path / "turned.ply", rotate(scene, HALF_TURN))
    config: Any = lightgaussian_config(tmp_path, tmp_path / "turned.ply", blender_data)
    with pytest.raises(InputError, match="the photos do not show it, or not in its frame"):
        train(config)
    assert not list(tmp_path.rglob("stages.json"))
    config.pipeline.check_photos = False
    assert train(config).step == 12
