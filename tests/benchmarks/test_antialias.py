"""The parts of the anti-aliasing benchmark that decide what is compared with what."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType

from benchmarks.antialias import FIELDS, plot, shrink, shrink_camera


def test_pixels_of_a_small_picture_are_means() -> None:
    image = torch.arange(5 * 7 * 3, dtype=torch.float32).reshape(5, 7, 3)
    small = shrink(image, 2)
    assert small.shape == (2, 3, 3)
    torch.testing.assert_close(small[1, 2], image[2:4, 4:6].mean(dim=(0, 1)))
    assert torch.equal(shrink(image, 1), image)


@pytest.mark.parametrize("factor", [2, 8])
def test_a_small_pictures_rays_go_through_the_middle_of_the_pixels_they_stand_for(factor: int) -> None:
    camera = Cameras(
        camera_to_worlds=torch.eye(4)[None, :3],
        fx=50.0,
        fy=40.0,
        cx=32.0,
        cy=24.0,
        width=64,
        height=48,
        camera_type=CameraType.PERSPECTIVE,
    )
    full = camera.generate_rays(camera_indices=0)
    small = shrink_camera(camera, factor).generate_rays(camera_indices=0)
    assert small.shape == (48 // factor, 64 // factor)
    ends = full.directions / full.directions[..., 2:].abs()
    middle = shrink(ends, factor)
    torch.testing.assert_close(small.directions / small.directions[..., 2:].abs(), middle, atol=1e-5, rtol=1e-4)
    area = full.pixel_area[24, 32] * factor**2
    torch.testing.assert_close(small.pixel_area[24 // factor, 32 // factor], area, rtol=0.15, atol=0)


def test_the_plot_is_written(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        dict(zip(FIELDS, ("a", "m", 60, scale, 4, 4, 1, 30.0), strict=True)) for scale in (1.0, 0.5)
    ]
    plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
