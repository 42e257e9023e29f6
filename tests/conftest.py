"""Shared by all tests: checked shapes, seeds, threads, real data where it is, and the marks for machines."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import hypothesis
import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]

# Fixtures of the tests of splat methods: tests/support/tiny_runs.py.
pytest_plugins = ["tiny_runs", "tiny_students", "tiny_vqad", "ray_teachers", "kilo_teachers"]


def checked_modules() -> list[str]:
    """Modules whose shapes and types are checked at run time: all but those with numba or Triton kernels.

    The checker wraps every function, and neither can compile a wrapped one. The package modules are left out because
    naming one would take in everything below it.
    """
    paths = [path for path in sorted((ROOT / "radcomp_plugins").rglob("*.py")) if path.name != "__init__.py"]
    kernels = ("import numba", "from numba", "import triton")
    checked = [path for path in paths if not any(word in path.read_text() for word in kernels)]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in checked]


jaxtyping.install_import_hook(checked_modules(), "beartype.beartype")

# How long an example takes says nothing on a shared machine.
# The same examples in every run, so that what passes here passes there.
hypothesis.settings.register_profile("radcomp", deadline=None, derandomize=True)
hypothesis.settings.load_profile("radcomp")

# Workers of pytest-xdist share the cores.
torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))


@pytest.fixture(autouse=True)
def seeds() -> None:
    """The same random numbers in every run, in any order of the tests."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test draw from the global generator
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """`real_data("name")` is a folder or file of real data; the test is skipped where there is none."""
    root = Path(os.environ.get("RADCOMP_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"no real data {name}: set RADCOMP_DATA to the folder that has it")
        return root / name

    return find


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten random pictures of 40 x 40 around 50 random points, in nerfstudio's form: nine train, one is held out."""
    folder = tmp_path_factory.mktemp("tiny") / "data"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    frames = []
    for index in range(10):
        angle = 2 * np.pi * index / 10
        eye = np.array([3 * np.cos(angle), 3 * np.sin(angle), 1.0])
        back = eye / np.linalg.norm(eye)
        right = np.cross([0.0, 0.0, 1.0], back) / np.linalg.norm(np.cross([0.0, 0.0, 1.0], back))
        pose = np.eye(4)
        pose[:3] = np.stack([right, np.cross(back, right), back, eye], axis=1)
        name = f"images/{index:02d}.png"
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / name)
        frames.append({"file_path": name, "transform_matrix": pose.tolist()})
    camera = {"w": 40, "h": 40, "fl_x": 40.0, "fl_y": 40.0, "cx": 20.0, "cy": 20.0, "camera_model": "OPENCV"}
    transforms = {**camera, "ply_file_path": "points3D.ply", "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(transforms))
    header = ["ply", "format binary_little_endian 1.0", "element vertex 50"]
    header += [f"property float {name}" for name in "xyz"]
    header += [f"property uchar {name}" for name in ("red", "green", "blue")]
    points = np.zeros(50, dtype=[("xyz", "<f4", 3), ("rgb", "u1", 3)])
    points["xyz"], points["rgb"] = rng.uniform(-1, 1, (50, 3)), rng.integers(0, 256, (50, 3))
    (folder / "points3D.ply").write_bytes("\n".join([*header, "end_header\n"]).encode() + points.tobytes())
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
