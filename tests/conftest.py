"""Shared by all tests: checked shapes, seeds, threads, real data where it is, and the marks for machines."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def checked_modules() -> list[str]:
    """Modules whose shapes and types are checked at run time: all but those with numba kernels.

    The checker wraps every function, and numba cannot compile a wrapped one. The package modules are left out because
    naming one would take in everything below it.
    """
    paths = [path for path in sorted((ROOT / "radcomp_plugins").rglob("*.py")) if path.name != "__init__.py"]
    kernels = ("import numba", "from numba")
    checked = [path for path in paths if not any(word in path.read_text() for word in kernels)]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in checked]


jaxtyping.install_import_hook(checked_modules(), "beartype.beartype")

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
