"""Teacher, student, asset and evaluation as a user types them, each from another working directory."""

import json
import os
import shutil
from pathlib import Path

import pytest
from commands import done, run

pytestmark = pytest.mark.slow

SMALL = (
    "--pipeline.model.triplane-resolution", 64, "--pipeline.model.sparse-resolution", 16,
    "--pipeline.model.hash-log2-size", 10, "--pipeline.batch-patches", 16, "--pipeline.pool-patches", 64,
    "--pipeline.pool-steps", 4, "--pipeline.occupancy-rays", 2000, "--vis", "tensorboard",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smerf")


@pytest.fixture(scope="module")
def teacher(place: Path, tiny_dataset: Path) -> Path:
    done(run(
        place / "first", "ns-train", "zipnerf-torch-tiny", "--output-dir", "runs", "--experiment-name", "tiny",
        "--timestamp", "t", "--max-num-iterations", 3, "--vis", "tensorboard", "nerfstudio-data",
        "--data", os.path.relpath(tiny_dataset, place / "first"),
    ))  # fmt: skip
    return place / "first/runs/tiny/zipnerf-torch-tiny/t"


@pytest.fixture(scope="module")
def student(place: Path, teacher: Path) -> Path:
    done(run(
        place / "second", "ns-train", "smerf-tiny", "--pipeline.teacher", os.path.relpath(teacher, place / "second"),
        "--output-dir", "runs", "--experiment-name", "tiny", "--timestamp", "s", "--max-num-iterations", 6,
        "--steps-per-save", 3, "--save-only-latest-checkpoint", "False", *SMALL,
    ))  # fmt: skip
    return place / "second/runs/tiny/smerf-tiny/s"


@pytest.fixture(scope="module")
def asset(place: Path, student: Path) -> Path:
    result = done(run(
        place / "third", "ns-export", "smerf", "--load-config",
        os.path.relpath(student / "config.yml", place / "third"), "--output-dir", "asset",
        "--weight-threshold", 0.0001, "--min-neighbours", 0,
    ))  # fmt: skip
    assert "dB before baking" in result.stdout
    return place / "third/asset"


def test_asset_holds_what_its_manifest_says(asset: Path) -> None:
    manifest = json.loads((asset / "manifest.json").read_text())
    assert manifest["format"] == "radcomp-smerf" and manifest["submodels"] == [0]
    assert (asset / "sm_000/scene_params.json").is_file()
    quality = manifest["quality"]
    assert quality["num_views"] == 1
    assert quality["psnr"] == pytest.approx(quality["unbaked"]["psnr"], abs=0.3)
    assert quality["teacher"]["psnr"] > 0 and quality["lpips"] is None and quality["lpips_missing"]


def test_ns_eval_shows_the_asset_wherever_it_was_moved(place: Path, asset: Path) -> None:
    moved = place / "elsewhere"
    shutil.copytree(asset, moved)
    relative = os.path.relpath(moved / "run/config.yml", place / "fourth")
    done(run(place / "fourth", "ns-eval", "--load-config", relative, "--output-path", "eval.json"))
    results = json.loads((place / "fourth/eval.json").read_text())["results"]
    stated = json.loads((asset / "manifest.json").read_text())["quality"]
    assert results["psnr"] == pytest.approx(stated["psnr"], abs=1e-2)


def test_ns_eval_opens_the_student_without_its_teacher(place: Path, student: Path, asset: Path) -> None:
    relative = os.path.relpath(student / "config.yml", place / "fifth")
    done(run(place / "fifth", "ns-eval", "--load-config", relative, "--output-path", "eval.json"))
    results = json.loads((place / "fifth/eval.json").read_text())["results"]
    stated = json.loads((asset / "manifest.json").read_text())["quality"]["unbaked"]
    assert results["psnr"] == pytest.approx(stated["psnr"], abs=1e-2)


def test_resumed_run_ends_as_the_whole_one(place: Path, teacher: Path, student: Path) -> None:
    import torch

    done(run(
        place / "sixth", "ns-train", "smerf-tiny", "--pipeline.teacher", os.path.relpath(teacher, place / "sixth"),
        "--output-dir", "runs", "--experiment-name", "tiny", "--timestamp", "r", "--max-num-iterations", 6,
        "--load-checkpoint", student / "nerfstudio_models/step-000000003.ckpt", *SMALL,
    ))  # fmt: skip
    first, second = (
        torch.load(folder / "nerfstudio_models/step-000000005.ckpt", map_location="cpu", weights_only=False)["pipeline"]
        for folder in (student, place / "sixth/runs/tiny/smerf-tiny/r")
    )
    assert set(first) == set(second)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_info_and_one_line_errors(place: Path, asset: Path, student: Path, teacher: Path) -> None:
    facts = done(run(place / "seventh", "radcomp", "info", asset)).stdout
    assert "64" in facts
    broken = place / "broken"
    shutil.copytree(asset, broken)
    path = broken / "sm_000/plane_rgb_1.raw.gz"
    path.write_bytes(path.read_bytes()[:-20])
    result = run(place / "seventh", "radcomp", "info", broken)
    assert result.returncode == 1 and "plane_rgb_1" in result.stdout
    splats = run(
        place / "seventh", "ns-train", "smerf-tiny", "--pipeline.teacher", student, "--vis", "tensorboard",
        "--output-dir", "runs",
    )  # fmt: skip
    assert splats.returncode == 1 and "Traceback" not in splats.stderr + splats.stdout
    missing = run(place / "seventh", "ns-train", "smerf-tiny", "--vis", "tensorboard")
    assert missing.returncode == 1 and "no teacher" in missing.stdout
