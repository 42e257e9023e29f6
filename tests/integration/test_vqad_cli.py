"""Training, export, evaluation and streaming of VQ-AD as a user types them, each from another working directory."""

import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest
from commands import done, run

from radcomp_plugins.web.server import AssetServer

pytestmark = pytest.mark.slow

SMALL = (
    "--pipeline.model.coarsest-level", 2, "--pipeline.model.finest-level", 4, "--pipeline.model.start-level", 3,
    "--pipeline.datamanager.train-num-rays-per-batch", 64, "--pipeline.model.octree-from", "none", "--vis",
    "tensorboard",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vqad")


@pytest.fixture(scope="module")
def trained(place: Path, tiny_dataset: Path) -> Path:
    done(run(
        place / "first", "ns-train", "vqad-tiny", "--output-dir", "runs", "--experiment-name", "tiny", "--timestamp",
        "t", "--max-num-iterations", 20, *SMALL, "nerfstudio-data", "--data",
        os.path.relpath(tiny_dataset, place / "first"), "--load-3D-points", "False",
    ))  # fmt: skip
    return place / "first/runs/tiny/vqad-tiny/t"


@pytest.fixture(scope="module")
def asset(place: Path, trained: Path) -> Path:
    result = done(run(
        place / "second", "ns-export", "vqad", "--load-config",
        os.path.relpath(trained / "config.yml", place / "second"), "--output-dir", "asset", "--decoder-digits", 6,
    ))  # fmt: skip
    assert "dB before rounding" in result.stdout
    return place / "second/asset"


def test_manifest_tells_the_files_size_and_quality_by_level(asset: Path) -> None:
    manifest = json.loads((asset / "manifest.json").read_text())
    size = (asset / "scene.vqad").stat().st_size
    assert manifest["format"] == "radcomp-vqad" and manifest["files"]["scene.vqad"]["bytes"] == size
    rates = manifest["quality"]["levels"]
    assert [rate["bytes"] for rate in rates] == [level["end"] for level in manifest["levels"]]
    assert rates[-1]["bytes"] == size and rates[-1]["psnr"] == manifest["quality"]["psnr"]
    assert manifest["quality"]["psnr"] == pytest.approx(manifest["quality"]["unrounded"]["psnr"], abs=0.5)


def test_ns_eval_shows_the_file_wherever_it_was_moved(place: Path, asset: Path) -> None:
    moved = place / "elsewhere"
    shutil.copytree(asset, moved)
    done(run(place / "third", "ns-eval", "--load-config", moved / "run/config.yml", "--output-path", "eval.json"))
    results = json.loads((place / "third/eval.json").read_text())["results"]
    stated = json.loads((asset / "manifest.json").read_text())["quality"]
    assert results["psnr"] == pytest.approx(stated["psnr"], abs=1e-2)


def test_info_of_whole_cut_and_broken_files(place: Path, asset: Path) -> None:
    data = (asset / "scene.vqad").read_bytes()
    assert "so far" in done(run(place / "fourth", "radcomp", "info", asset)).stdout
    cut, broken = place / "cut.vqad", place / "broken.vqad"
    cut.write_bytes(data[:-5])
    broken.write_bytes(data[:-5] + bytes(5))
    assert "cut off after levels" in done(run(place / "fourth", "radcomp", "info", cut)).stdout
    result = run(place / "fourth", "radcomp", "info", broken)
    assert result.returncode == 1 and "checksum" in result.stdout and "Traceback" not in result.stdout + result.stderr


def test_pictures_while_the_file_arrives(place: Path, asset: Path) -> None:
    with AssetServer(asset, port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = done(run(place / "fifth", "radcomp", "stream", server.url, "--output-dir", "shown", "--size", 32))
        server.shutdown()
    levels = [level["level"] for level in json.loads((asset / "manifest.json").read_text())["levels"]]
    assert re.findall(r"level (\d+): ", result.stdout) == [str(level) for level in levels]
    for level in levels:
        assert (place / f"fifth/shown/level_{level}.png").stat().st_size > 50


def test_one_line_errors(place: Path, asset: Path, trained: Path) -> None:
    for args in (
        ("ns-export", "vqad", "--load-config", trained / "config.yml", "--output-dir", asset),
        ("radcomp", "stream", "http://127.0.0.1:9/scene.vqad"),
        ("radcomp", "export", "vqad", "--load-config", trained, "--output-dir", "x", "--decoder-digits", 11),
    ):
        result = run(place / "sixth", *map(str, args))
        assert result.returncode == 1 and "Traceback" not in result.stdout + result.stderr, args
