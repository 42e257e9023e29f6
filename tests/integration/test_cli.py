"""The whole path as a user types it, each command from another working directory than the one that trained."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from commands import TIMEOUT, command, done, environment, run
from PIL import Image

from radcomp_plugins import compat
from radcomp_plugins.splats.formats.registry import read_splats
from radcomp_plugins.teachers.load import load_splats

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def teacher(place, tiny_dataset) -> Path:
    """Run folder of a teacher, trained with relative paths."""
    folder = place / "first"
    done(run(
        folder, "ns-train", "splatfacto-tiny", "--data", os.path.relpath(tiny_dataset, folder), "--output-dir", "runs",
        "--experiment-name", "tiny", "--timestamp", "t", "--max-num-iterations", 5, "--vis", "tensorboard",
    ))  # fmt: skip
    return folder / "runs/tiny/splatfacto-tiny/t"


@pytest.fixture(scope="module")
def student(place, teacher) -> Path:
    """Run folder of a compression that found its dataset through the teacher."""
    folder = place / "second"
    done(run(
        folder, "ns-train", "lightgaussian-tiny", "--pipeline.teacher", os.path.relpath(teacher, folder),
        "--pipeline.co-adaptation-steps", 2, "--pipeline.distillation-steps", 2, "--pipeline.vq-finetune-steps", 2,
        "--pipeline.vq-codebook-size", 8, "--output-dir", "runs", "--experiment-name", "tiny", "--timestamp", "s",
        "--vis", "tensorboard", "--pipeline.check-photos", False,
    ))  # fmt: skip
    return folder / "runs/tiny/lightgaussian-tiny/s"


@pytest.fixture(scope="module")
def asset(place, student) -> Path:
    """Asset that ns-export wrote."""
    folder = place / "third"
    relative = os.path.relpath(student / "config.yml", folder)
    result = done(run(folder, "ns-export", "lightgaussian", "--load-config", relative, "--output-dir", "asset"))
    assert "scene.sog" in result.stdout
    return folder / "asset"


def test_runs_end_with_what_was_asked_for(teacher, student):
    assert len(load_splats(teacher)) == 50
    small = load_splats(student)
    assert (len(small), small.sh_degree) == (25, 2)
    rows = json.loads((student / "stages.json").read_text())["stages"]
    assert rows[0]["stage"] == "teacher" and rows[-1]["stage"] == "quantise, trained"


def test_ns_eval_opens_the_asset_and_measures_what_its_manifest_says(place, asset):
    folder = place / "fourth"
    relative = os.path.relpath(asset / "run/config.yml", folder)
    done(run(folder, "ns-eval", "--load-config", relative, "--output-path", "eval.json"))
    results = json.loads((folder / "eval.json").read_text())["results"]
    stated = json.loads((asset / "manifest.json").read_text())["quality"]
    assert results["psnr"] == pytest.approx(stated["psnr"], abs=1e-3)
    assert results["lpips"] is None and stated["lpips"] is None


def test_radcomp_export_is_the_same_and_overwrites_nothing(place, student, asset):
    folder = place / "fifth"
    args = ("export", "lightgaussian", "--load-config", os.path.relpath(student, folder), "--output-dir", "copy")
    done(run(folder, "radcomp", *args))
    for name in json.loads((asset / "manifest.json").read_text())["files"]:
        assert (folder / "copy" / name).read_bytes() == (asset / name).read_bytes(), name
    before = (folder / "copy/manifest.json").stat().st_mtime_ns
    again = run(folder, "radcomp", *args)
    assert again.returncode == 1 and (folder / "copy/manifest.json").stat().st_mtime_ns == before
    assert len(again.stdout.strip().splitlines()) == 1 and "copy exists already" in again.stdout


def test_stock_gaussian_splat_export_writes_the_scene(place, student):
    try:
        import open3d  # noqa: F401
    except (ImportError, OSError) as error:
        pytest.skip(f"ns-export needs open3d, which cannot be imported here: {compat.one_line(error) or error}")
    folder = place / "sixth"
    relative = os.path.relpath(student / "config.yml", folder)
    done(run(folder, "ns-export", "gaussian-splat", "--load-config", relative, "--output-dir", "stock"))
    exported, trained = read_splats(folder / "stock/splat.ply"), load_splats(student)
    for name, tensor in trained.tensors.items():
        torch.testing.assert_close(getattr(exported, name), tensor, msg=name)


def test_ns_render_draws_the_asset(place, asset):
    folder = place / "seventh"
    done(run(
        folder, "ns-render", "dataset", "--load-config", os.path.relpath(asset / "run/config.yml", folder),
        "--output-path", "renders", "--split", "test", "--rendered-output-names", "rgb", "--image-format", "png",
    ))  # fmt: skip
    images = [path for path in (folder / "renders").rglob("*") if path.suffix in (".png", ".jpg")]
    assert len(images) == 1 and Image.open(images[0]).size == (40, 40)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_ns_viewer_serves_the_asset(place, asset):
    folder, port = place / "eighth", free_port()
    folder.mkdir()
    log = folder / "log"
    relative = os.path.relpath(asset / "run/config.yml", folder)
    args = [command("ns-viewer"), "--load-config", relative, "--viewer.websocket-port", str(port)]
    with open(log, "wb") as output:
        viewer = subprocess.Popen(args, cwd=folder, env=environment(folder), stdout=output, stderr=output)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        deadline, status = time.monotonic() + TIMEOUT, 0
        while status != 200:
            assert viewer.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
            try:
                status = opener.open(f"http://127.0.0.1:{port}/", timeout=10).status
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
    finally:
        viewer.send_signal(signal.SIGINT)
        try:
            viewer.wait(30)
        except subprocess.TimeoutExpired:
            viewer.kill()
            viewer.wait()


def test_what_is_no_teacher_is_one_line(place):
    folder = place / "ninth"
    result = run(folder, "ns-train", "lightgaussian-tiny", "--pipeline.teacher", "nowhere", "--vis", "tensorboard")
    assert result.returncode == 1 and "Traceback" not in result.stdout + result.stderr
    assert "teacher nowhere: no such file or folder; expected" in result.stdout + result.stderr
    assert not (folder / "outputs").exists()
