"""`radcomp compare`: the table, its numbers, the pictures, photos in place of virtual views, and what is refused."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from radcomp_plugins.cli.compare_pictures import rate_points, worst_view
from radcomp_plugins.cli.main import run
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.comparison import SceneComparison
from radcomp_plugins.splats.formats.ply import float32_bytes
from radcomp_plugins.splats.formats.registry import read_splats, write_splats
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.virtual_views import virtual_views

SMALL = ("--views", "2", "--size", "32")


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """One scene in four formats."""
    generator = torch.Generator().manual_seed(0)
    means, quats, sh0 = (torch.randn(150, n, generator=generator) for n in (3, 4, 3))
    g = Gaussians(means, quats, torch.full((150, 3), -1.5), torch.ones(150), sh0, torch.zeros(150, 0, 3))
    paths = {name: tmp_path / f"scene.{name}" for name in ("ply", "splat", "spz", "compressed.ply")}
    for path in paths.values():
        write_splats(path, g)
    return paths


def result_of(capsys: pytest.CaptureFixture[str], *args: object) -> dict:
    run(["compare", *map(str, args), "--json"])
    return json.loads(capsys.readouterr().out)


def test_numbers_of_each_file(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of(capsys, files["ply"], files["splat"], files["spz"], *SMALL)
    reference, (splat, spz) = result["reference"], result["files"]
    assert result["schema_version"] == 1 and reference["psnr"] is None
    assert [row["format"] for row in (reference, splat, spz)] == ["ply", "splat", "spz"]
    assert splat["bytes"] == 150 * 32 and splat["ratio"] == round(68 / 32, 3) and splat["gaussians"] == 150
    whole = read_splats(files["ply"])
    assert result["float32_ply_bytes"] == float32_bytes(whole) == 150 * 68
    expected = SceneComparison(whole, virtual_views(whole, 2, 32, 1)).similarity(read_splats(files["spz"]))
    assert spz["psnr"] == pytest.approx(expected.psnr) and spz["ssim"] == pytest.approx(expected.ssim)
    assert 30 < spz["psnr"] < 99 and len(spz["per_view"]) == 2 and spz["decode_seconds"] >= 0


def test_the_table(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run(["compare", str(files["ply"]), str(files["splat"]), *SMALL])
    head, reference, splat, note = capsys.readouterr().out.splitlines()
    assert re.findall(r"\S+", head)[:3] == ["file", "format", "bytes"]
    assert re.search(r"scene\.splat +splat +4,800 +2\.1x +150 +0 +\d\d\.\d\d dB +0\.9\d{3} +\d+\.\d\d s$", splat)
    assert "dB" not in reference and "2 views of 32 x 32 pixels" in note


def test_pictures_beside_the_numbers(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    args = (*files.values(), *SMALL, "--output-dir", out)
    result = result_of(capsys, *args)
    assert sorted(p.name for p in out.iterdir()) == ["compare.json", "side_by_side.png", "size_psnr.png"]
    assert json.loads((out / "compare.json").read_text()) == result
    sheet = Image.open(out / "side_by_side.png")
    # Four columns above, three error maps beneath, the reference's place is empty.
    assert sheet.width == 4 * 432 - 12
    alpha = np.asarray(sheet)[..., 3]
    assert alpha[-100, :400].max() == 0 and alpha[-100, 440:800].min() == 255 and alpha[100, 10:410].min() == 255
    with pytest.raises(InputError, match="exists already"):
        result_of(capsys, *args)
    two = result_of(capsys, files["ply"], files["splat"], *SMALL, "--output-dir", out, "--overwrite")
    assert "size_psnr" not in two["pictures"] and not (out / "size_psnr.png").exists()


@pytest.mark.slow
def test_held_out_photos_in_place_of_virtual_views(
    files: dict[str, Path], tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    result = result_of(capsys, files["ply"], files["splat"], "--data", tiny_dataset, "--output-dir", out)
    assert result["views"] == 1 and result["truth"] == f"held-out photos of {tiny_dataset}"
    # The photos are noise: neither is good, and both are about equally bad.
    assert 3 < result["reference"]["psnr"] < 15
    assert result["files"][0]["psnr"] == pytest.approx(result["reference"]["psnr"], abs=0.5)
    assert (out / "side_by_side.png").exists()


def test_the_view_that_is_shown_is_the_one_that_loses_most() -> None:
    assert worst_view([[30.0, 20.0, 40.0], [30.0, 35.0, 25.0]]) == 1
    assert worst_view([[50.0, 50.0]]) == 0


def test_files_without_a_loss_do_not_stretch_the_plot() -> None:
    row = {"ssim": 1.0, "gaussians": 3}
    rows = [
        {**row, "path": "d/b.sog", "format": "sog", "bytes": 20, "psnr": 40.0},
        {**row, "path": "c.ply", "format": "ply", "bytes": 90, "psnr": 100.0},
        {**row, "path": "d/a.sog", "format": "sog", "bytes": 10, "psnr": 30.0},
    ]
    assert [(p.label, p.method, p.bytes) for p in rate_points(rows)] == [("a.sog", "sog", 10), ("b.sog", "sog", 20)]


@pytest.mark.parametrize(
    "args, message",
    [
        (["a.ply"], "at least one file to compare"),
        (["a.ply", "b.ply", "--views", "0"], "--views 0"),
        (["a.ply", "b.ply"], "a.ply"),
    ],
)
def test_what_is_refused(args: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        run(["compare", *args])
    assert "\n" not in str(error.value)
