"""SOG version 1, read only: a folder worked out by hand, the peer's reading of it, and hostile ones."""

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.ply import read_ply
from radcomp_plugins.splats.formats.sog import read_sog


def webp(columns: list[list[int]], width: int = 4) -> bytes:
    rows = np.array(columns, np.uint8)
    pixels = np.zeros((-(-len(rows) // width), width, rows.shape[1]), np.uint8)
    pixels.reshape(-1, rows.shape[1])[: len(rows)] = rows
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, exact=True)
    return buffer.getvalue()


def files(bands: int | None = None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Two Gaussians; with `bands`, SH from a palette of 64 whose entry k is all k."""
    meta: dict[str, Any] = {
        "means": {"shape": [2, 3], "dtype": "float32", "mins": [-1.0, 0.0, 0.0], "maxs": [1.0, 2.0, 0.0]},
        "scales": {"shape": [2, 3], "mins": [-8.0, -6.0, -4.0], "maxs": [-3.0, -6.0, 1.1]},
        "quats": {"shape": [2, 4]},
        "sh0": {"shape": [2, 1, 4], "mins": [-1.0, 0.0, 0.5, -5.0], "maxs": [1.55, 2.0, 0.5, 0.1]},
    }
    images = {
        "means_l.webp": webp([[0, 255, 0], [255, 0, 0]]),
        "means_u.webp": webp([[0, 255, 0], [255, 0, 0]]),
        "scales.webp": webp([[0, 9, 255], [51, 0, 100]]),
        "quats.webp": webp([[255, 128, 127, 252], [0, 128, 128, 255]]),
        "sh0.webp": webp([[0, 255, 7, 255], [100, 0, 0, 0]]),
    }
    names = {"means": ["means_l.webp", "means_u.webp"]} | {n: [f"{n}.webp"] for n in ("scales", "quats", "sh0")}
    if bands is not None:
        count = (bands + 1) ** 2 - 1
        meta["shN"] = {"shape": [2, count], "mins": -1.0, "maxs": 1.55, "quantization": 8}
        names["shN"] = ["shN_centroids.webp", "shN_labels.webp"]
        images["shN_centroids.webp"] = webp([[k, k, 2 * k] for k in range(64) for _ in range(count)], 64 * count)
        images["shN_labels.webp"] = webp([[3, 0, 0], [63, 0, 0]])
    for name, listed in names.items():
        meta[name]["files"] = listed
    return meta, images


def write(folder: Path, meta: dict[str, Any], images: dict[str, bytes]) -> Path:
    for name, data in images.items():
        (folder / name).write_bytes(data)
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def test_values_worked_out_by_hand(tmp_path: Path) -> None:
    g = read_sog(write(tmp_path, *files()))
    e = math.e
    np.testing.assert_allclose(g.means, [[1 - e, e * e - 1, 0], [e - 1, 0, 0]], atol=1e-5)
    # Steps of 5 / 255 and 5.1 / 255.
    np.testing.assert_allclose(g.scales, [[-8, -6, 1.1], [-7, -6, -2]], atol=1e-5)
    np.testing.assert_allclose(g.opacities, [0.1, -5.0], atol=1e-6)
    np.testing.assert_allclose(g.sh0, [[-1, 2, 0.5], [0, 0, 0.5]], atol=1e-5)
    r = math.sqrt(0.5)
    np.testing.assert_allclose(g.quats, [[r, r, 0, 0], [-r, 0, 0, r]], atol=4e-3)
    assert g.sh_degree == 0 and not g.antialiased


def test_an_antialiased_scene_says_so(tmp_path: Path) -> None:
    meta, images = files()
    assert read_sog(write(tmp_path, {**meta, "antialias": True}, images)).antialiased


@pytest.mark.parametrize("bands", [1, 2, 3])
def test_palette(tmp_path: Path, bands: int) -> None:
    g = read_sog(write(tmp_path, *files(bands)))
    assert g.sh_degree == bands
    expected = torch.tensor([[-0.97, -0.97, -0.94], [-0.37, -0.37, 0.26]])[:, None].expand_as(g.shN)
    torch.testing.assert_close(g.shN, expected, atol=1e-5, rtol=0)


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "count": (lambda m: m["means"].update(shape=[10**6, 3]), "1000000 Gaussians|pixels, expected"),
    "no count": (lambda m: m["means"].update(shape=[]), "means.shape"),
    "no range": (lambda m: m["scales"].pop("mins"), "scales.mins"),
    "short range": (lambda m: m["sh0"].update(maxs=[1.0]), "sh0.maxs"),
    "no palette range": (lambda m: m["shN"].pop("maxs"), "shN.maxs"),
    "far": (lambda m: m["means"].update(maxs=[1e3, 1.0, 1.0]), "means.maxs"),
    "palette width": (lambda m: m["shN"].update(files=["quats.webp", "shN_labels.webp"]), "pixels|wide"),
    "a version": (lambda m: m.update(version=1), "SOG version 1, expected 2"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_folders_are_one_line(tmp_path: Path, case: str) -> None:
    change, expected = HOSTILE[case]
    meta, images = files(2)
    change(meta)
    with pytest.raises(InputError, match=expected) as error:
        read_sog(write(tmp_path, meta, images))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_splat_transform_reads_the_same(tmp_path: Path, splat_transform: Callable[..., None]) -> None:
    (tmp_path / "v1").mkdir()
    folder = write(tmp_path / "v1", *files(2))
    splat_transform(folder / "meta.json", tmp_path / "a.ply")
    a, b = read_sog(folder), read_ply(tmp_path / "a.ply")
    for name in ("means", "scales", "sh0", "shN", "opacities"):
        torch.testing.assert_close(a.tensors[name], b.tensors[name], atol=1e-5, rtol=1e-5)
