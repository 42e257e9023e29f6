"""The exported asset: same bytes, true sizes, quality of the decoded file, a run that shows it, nothing half-done."""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_msssim import ssim
from tiny_runs import SIZE, orbit, views_of

from radcomp_plugins import compat
from radcomp_plugins.core import metrics
from radcomp_plugins.core.files import read_manifest, sha256_file
from radcomp_plugins.errors import InputError
from radcomp_plugins.lightgaussian import asset as module
from radcomp_plugins.lightgaussian import model as model_module
from radcomp_plugins.lightgaussian.asset import dataset_frame, export_run, sh_palette
from radcomp_plugins.lightgaussian.baked_model import BakedSplatModel, decode_asset
from radcomp_plugins.splats.draw import picture
from radcomp_plugins.splats.formats.registry import read_splats
from radcomp_plugins.splats.formats.sog import write_sog
from radcomp_plugins.teachers.load import load_splats


@pytest.fixture(scope="module", autouse=True)
def no_downloads():
    """LPIPS as on a machine without network."""
    patch = pytest.MonkeyPatch()
    patch.setattr(metrics, "_networks", {})
    patch.setattr(metrics, "_failures", {"alex": "weights not available: no network"})
    yield
    patch.undo()


@pytest.fixture(scope="module")
def asset(lightgaussian_run, tmp_path_factory) -> Path:
    """The asset of the finished run."""
    folder = tmp_path_factory.mktemp("asset") / "scene"
    export_run(lightgaussian_run.base_dir, folder)
    return folder


@pytest.fixture(scope="module")
def loaded(lightgaussian_run):
    """The finished run as an export opens it."""
    return compat.load_run(lightgaussian_run.base_dir)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def measured(scene, blender_data: Path, reference=None) -> dict[str, Any]:
    """PSNR and SSIM over the held-out views, from the files of the dataset."""
    psnrs, ssims = [], []
    for index, view in list(enumerate(views_of(orbit())))[-2:]:
        rgba = np.asarray(Image.open(blender_data / f"images/{index:02d}.png")).astype(np.float64) / 255
        truth = torch.from_numpy(rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:])
        if reference is not None:
            truth = picture(reference, view, torch.ones(3)).double()
        drawn = picture(scene, view, torch.ones(3)).double()
        psnrs.append(-10 * torch.log10(((truth - drawn) ** 2).mean()).item())
        ssims.append(ssim(truth.permute(2, 0, 1)[None], drawn.permute(2, 0, 1)[None], data_range=1.0).item())
    return {"psnr": pytest.approx(np.mean(psnrs), abs=2e-3), "ssim": pytest.approx(np.mean(ssims), abs=1e-3)}


# The folder -----------------------------------------------------------------------------------------------------------


def test_asset_has_the_files_its_manifest_lists_with_their_true_sizes(asset):
    manifest = json.loads((asset / "manifest.json").read_text())
    checkpoint = "run/nerfstudio_models/step-000000000.ckpt"
    expected = {"scene.sog", "scene.ply", "run/config.yml", "run/dataparser_transforms.json", checkpoint}
    assert set(manifest["files"]) == expected == set(contents(asset)) - {"manifest.json"}
    for name, entry in manifest["files"].items():
        assert entry == {"bytes": (asset / name).stat().st_size, "sha256": sha256_file(asset / name)}
    assert (manifest["format"], manifest["version"]) == ("radcomp-lightgaussian", 1)
    assert (manifest["gaussians"], manifest["sh_degree"], manifest["antialiased"]) == (24, 2, False)
    assert manifest["method"] == "lightgaussian-tiny"
    assert sum(manifest["parts"].values()) == manifest["files"]["scene.sog"]["bytes"]
    read_manifest(asset)


def test_exporting_twice_gives_the_same_bytes(asset, lightgaussian_run, tmp_path):
    export_run(lightgaussian_run.base_dir / "config.yml", tmp_path / "elsewhere")
    assert contents(tmp_path / "elsewhere") == contents(asset)


def test_quality_is_measured_on_the_decoded_file(asset, blender_data, teacher_ply):
    stated = json.loads((asset / "manifest.json").read_text())["quality"]
    decoded, teacher = read_splats(asset / "scene.sog"), read_splats(teacher_ply)
    assert stated["num_views"] == 2
    assert {key: stated[key] for key in ("psnr", "ssim")} == measured(decoded, blender_data)
    assert {key: stated["teacher"][key] for key in ("psnr", "ssim")} == measured(teacher, blender_data)
    assert stated["to_teacher"] == measured(decoded, blender_data, reference=teacher)
    assert stated["lpips"] is None and "no network" in stated["lpips_missing"]


def test_what_was_lost_in_the_file_is_lost_in_the_quality(
    monkeypatch, loaded, lightgaussian_run, blender_data, tmp_path
):
    monkeypatch.setattr(compat, "load_run", lambda *args, **kwargs: loaded)
    monkeypatch.setattr(module, "read_splats", lambda path: read_splats(path).with_sh_degree(0))
    manifest = export_run(lightgaussian_run.base_dir, tmp_path / "asset")
    assert manifest["sh_degree"] == 0
    lossy = read_splats(tmp_path / "asset" / "scene.sog").with_sh_degree(0)
    assert {key: manifest["quality"][key] for key in ("psnr", "ssim")} == measured(lossy, blender_data)


def test_files_hold_the_trained_scene(asset, lightgaussian_run):
    trained = lightgaussian_run.pipeline.model.gaussians()
    exact, decoded = read_splats(asset / "scene.ply"), read_splats(asset / "scene.sog")
    for name, tensor in trained.tensors.items():
        assert torch.equal(getattr(exact, name), tensor), name
    # The order in a .sog is its own; means are exact to a few parts in a million of the extent.
    nearest = torch.cdist(decoded.means, trained.means).argmin(dim=1)
    assert sorted(nearest.tolist()) == list(range(24))
    torch.testing.assert_close(decoded.means, trained.means[nearest], atol=1e-3, rtol=0)
    torch.testing.assert_close(decoded.sh0, trained.sh0[nearest], atol=0.02, rtol=0)
    torch.testing.assert_close(decoded.shN, trained.shN[nearest], atol=0.15, rtol=0)


def test_palette_is_the_codebook_and_an_entry_for_each_who_has_sh_of_their_own(lightgaussian_run):
    model = lightgaussian_run.pipeline.model
    palette = sh_palette(model)
    assert palette is not None
    entries, labels = palette
    assert entries.shape == (8 + 6, 24) and torch.equal(entries[:8], model.codebook)
    assert torch.equal(entries[labels].view(24, 8, 3), model.gaussians().shN)


def test_writer_gets_palette_and_significance(monkeypatch, loaded, lightgaussian_run, tmp_path):
    monkeypatch.setattr(compat, "load_run", lambda *args, **kwargs: loaded)
    given = {}

    def spy(path, scene, **options):
        given.update(options)
        return write_sog(path, scene, **options)

    monkeypatch.setattr(module, "write_sog", spy)
    export_run(lightgaussian_run.base_dir, tmp_path / "asset", with_quality=False)
    model, palette = loaded[1].model, sh_palette(loaded[1].model)
    assert palette is not None
    assert all(torch.equal(got, own) for got, own in zip(given["sh_palette"], palette, strict=True))
    assert torch.equal(given["significance"], model.significance) and bool(model.significance.any())


def test_no_palette_where_there_is_no_codebook_or_too_many_entries(monkeypatch, lightgaussian_run):
    model = lightgaussian_run.pipeline.model
    monkeypatch.setattr(model_module, "MAX_PALETTE", 13)
    assert sh_palette(model) is None
    monkeypatch.setattr(model_module, "MAX_PALETTE", 14)
    assert sh_palette(model) is not None
    monkeypatch.setitem(model._parameters, "codebook", torch.nn.Parameter(torch.zeros(0, 24)))
    assert sh_palette(model) is None


def test_frame_of_the_dataset_comes_from_the_run(lightgaussian_run, tmp_path):
    stored = {"transform": [[0.0, 1.0, 0.0, 2.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]], "scale": 0.5}
    (tmp_path / "dataparser_transforms.json").write_text(json.dumps(stored))
    assert dataset_frame(tmp_path) == (stored, tmp_path / "dataparser_transforms.json")
    frame, path = dataset_frame(tmp_path / "none")
    assert path is None and frame["scale"] == 1.0 and np.array_equal(frame["transform"], np.eye(4)[:3])


def test_formats_quality_and_teacher_are_optional(lightgaussian_run, tmp_path):
    manifest = export_run(lightgaussian_run.base_dir, tmp_path / "a", formats=("ply",), with_quality=False)
    assert manifest["quality"] is None and manifest["parts"] == {}
    assert "scene.ply" in manifest["files"] and "scene.sog" not in manifest["files"]
    baked, exact = compat.load_run(tmp_path / "a" / "run")[1].model, read_splats(tmp_path / "a" / "scene.ply")
    assert isinstance(baked, BakedSplatModel)
    assert all(torch.equal(tensor, getattr(exact, name)) for name, tensor in baked.gaussians().tensors.items())


# The run beside it ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def baked(asset):
    """The pipeline that stock tools open."""
    return compat.load_run(asset / "run")[1]


def test_baked_run_shows_the_decoded_file(asset, baked):
    assert isinstance(baked.model, BakedSplatModel)
    decoded = read_splats(asset / "scene.sog")
    for name, tensor in decoded.tensors.items():
        assert torch.equal(getattr(baked.model.gaussians(), name), tensor), name
    for (camera, _), view in zip(baked.datamanager.fixed_indices_eval_dataloader, views_of(orbit())[-2:], strict=True):
        outputs = baked.model.get_outputs_for_camera(camera)
        torch.testing.assert_close(outputs["rgb"], picture(decoded, view, torch.ones(3)), atol=1e-5, rtol=0)
        assert outputs["depth"].shape == outputs["accumulation"].shape == (SIZE, SIZE, 1)


def test_ns_eval_measures_what_the_manifest_says(asset, baked):
    stated = json.loads((asset / "manifest.json").read_text())["quality"]
    measured = baked.get_average_eval_image_metrics()
    assert measured["psnr"] == pytest.approx(stated["psnr"], abs=1e-3)
    assert measured["ssim"] == pytest.approx(stated["ssim"], abs=1e-3)
    assert measured["num_gaussians"] == 24
    assert measured["lpips"] is None


def test_baked_run_is_the_file_and_nothing_else(asset, baked):
    state = torch.load(asset / "run/nerfstudio_models/step-000000000.ckpt", weights_only=True)
    assert list(state["pipeline"]) == ["_model.asset"]
    assert state["pipeline"]["_model.asset"].numpy().tobytes() == (asset / "scene.sog").read_bytes()
    assert baked.model.estimated_bytes() == (asset / "scene.sog").stat().st_size


def test_asset_still_opens_after_it_was_moved(asset, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(asset, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    model = compat.load_run(Path("moved/run/config.yml"))[1].model
    assert model.num_points == 24


@pytest.mark.parametrize("suffix", ["sog", "ply"])
def test_asset_bytes_decode_as_the_file_does(asset, suffix):
    path = asset / f"scene.{suffix}"
    decoded = decode_asset(torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8))
    assert all(torch.equal(t, getattr(read_splats(path), name)) for name, t in decoded.tensors.items())


# Bad input ------------------------------------------------------------------------------------------------------------


def test_an_output_that_exists_is_refused_before_any_work(monkeypatch, lightgaussian_run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    monkeypatch.setattr(compat, "load_run", lambda *args, **kwargs: pytest.fail("the run was loaded first"))
    with pytest.raises(InputError, match=r"^.*mine exists already: .*--overwrite.*$"):
        export_run(lightgaussian_run.base_dir, tmp_path / "mine")
    with pytest.raises(InputError, match="no format"):
        export_run(lightgaussian_run.base_dir, tmp_path / "new", formats=())
    assert contents(tmp_path) == {"mine/letter.txt": b"dear"}


def test_overwrite_replaces_an_asset_and_nothing_else(lightgaussian_run, tmp_path):
    options = {"formats": ("ply",), "with_quality": False}
    export_run(lightgaussian_run.base_dir, tmp_path / "a", **options)
    (tmp_path / "a" / "stale.txt").write_text("old")
    export_run(lightgaussian_run.base_dir, tmp_path / "a", overwrite=True, **options)
    assert "stale.txt" not in contents(tmp_path / "a")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="not replaced"):
        export_run(lightgaussian_run.base_dir, tmp_path / "photos", overwrite=True, **options)
    assert contents(tmp_path / "photos") == {"me.jpg": b"x"}


@pytest.mark.parametrize("stage", ["write_sog", "read_splats", "baked_run", "measure", "write_manifest"])
@pytest.mark.parametrize(
    ("failure", "raised"),
    [(OSError(errno.ENOSPC, "No space left on device"), InputError), (KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["full disk", "kill"],
)
def test_a_failed_export_leaves_nothing(monkeypatch, loaded, lightgaussian_run, tmp_path, stage, failure, raised):
    monkeypatch.setattr(compat, "load_run", lambda *args, **kwargs: loaded)

    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setattr(module, stage, fail)
    with pytest.raises(raised, match="disk is full" if raised is InputError else None) as caught:
        export_run(lightgaussian_run.base_dir, tmp_path / "asset")
    assert raised is not InputError or len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_method_is_refused(teacher_run, tmp_path):
    with pytest.raises(InputError, match=r"a run of splatfacto-tiny, expected one of lightgaussian"):
        export_run(teacher_run, tmp_path / "asset")
    with pytest.raises(InputError, match=r"no such file, expected the config.yml"):
        export_run(tmp_path / "nothing", tmp_path / "asset")
    assert not (tmp_path / "asset").exists()


def test_a_baked_run_whose_file_is_damaged_is_one_line():
    with pytest.raises(InputError):
        decode_asset(torch.frombuffer(bytearray(b"PK\x03\x04 not really"), dtype=torch.uint8))
    with pytest.raises(InputError):
        decode_asset(torch.zeros(0, dtype=torch.uint8))


def test_an_exported_scene_is_a_teacher_again(asset):
    assert len(load_splats(asset / "scene.sog")) == len(load_splats(asset / "scene.ply")) == 24
    with pytest.raises(InputError, match=r"^.*ckpt: the run beside an exported asset; expected .* its scene.sog"):
        load_splats(asset / "run")
