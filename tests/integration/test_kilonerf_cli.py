"""A real teacher, its KiloNeRF, asset and evaluation as a user types them, each from another working directory."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import done, run

pytestmark = pytest.mark.slow

SMALL = (
    "--pipeline.model.grid-longest", 6, "--pipeline.model.voxels-per-cell", 8, "--pipeline.pool-points", 64,
    "--pipeline.search-rays", 512, "--pipeline.datamanager.train-num-rays-per-batch", 512, "--vis", "tensorboard",
    "--steps-per-eval-image", 1000,
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kilonerf")


@pytest.fixture(scope="module")
def student(place: Path, real_data: Callable[[str], Path]) -> Path:
    teacher = real_data("nerf_pytorch_chair_teacher") / "weights.npz"
    done(run(
        place / "first", "ns-train", "kilonerf-tiny", "--pipeline.teacher", teacher, "--output-dir", "runs",
        "--experiment-name", "chair", "--timestamp", "k", "--max-num-iterations", 40, *SMALL, "blender-data", "--data",
        real_data("nerf_synthetic_chair_400"),
    ))  # fmt: skip
    return place / "first/runs/chair/kilonerf-tiny/k"


@pytest.fixture(scope="module")
def asset(place: Path, student: Path) -> Path:
    config = os.path.relpath(student / "config.yml", place / "second")
    result = done(run(
        place / "second", "ns-export", "kilonerf", "--load-config", config, "--output-dir", "asset",
        "--teacher-views", 0,
    ))  # fmt: skip
    assert "dB before rounding" in result.stdout
    return place / "second/asset"


def test_asset_shows_something_of_the_chair(asset: Path) -> None:
    manifest = json.loads((asset / "manifest.json").read_text())
    assert manifest["quality"]["num_views"] == 25 and manifest["quality"]["psnr"] > 13.0
    assert manifest["files"]["scene.safetensors"]["bytes"] < 3_000_000


def test_ns_eval_says_what_the_manifest_says(place: Path, asset: Path) -> None:
    done(run(place / "third", "ns-eval", "--load-config", asset / "run/config.yml", "--output-path", "eval.json"))
    results = json.loads((place / "third/eval.json").read_text())["results"]
    stated = json.loads((asset / "manifest.json").read_text())["quality"]
    assert results["psnr"] == pytest.approx(stated["psnr"], abs=1e-2)


def test_info_and_one_line_errors(place: Path, asset: Path, real_data: Callable[[str], Path]) -> None:
    facts = done(run(place / "fourth", "radcomp", "info", asset)).stdout
    assert "radcomp-kilonerf" in facts and "networks" in facts
    file = asset / "scene.safetensors"
    data = file.read_bytes()
    try:
        file.write_bytes(data[:-7])
        broken = run(place / "fourth", "radcomp", "info", asset)
    finally:
        file.write_bytes(data)
    assert broken.returncode == 1 and "altered or cut off" in " ".join(broken.stdout.split())
    teacher = real_data("nerf_pytorch_chair_teacher") / "weights.npz"
    bare = run(place / "fourth", "ns-train", "kilonerf-tiny", "--pipeline.teacher", teacher, "--vis", "tensorboard")
    assert bare.returncode == 1 and "knows no dataset" in bare.stdout and "Traceback" not in bare.stdout + bare.stderr
