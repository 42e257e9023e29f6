"""What VQ-AD's benchmarks compute apart from training: sizes by way of coding, means over seeds, tables."""

import numpy as np
import pytest
from vqad_scenes import toy_scene

from benchmarks import vqad_file, vqad_tables
from radcomp_plugins.errors import InputError
from radcomp_plugins.vqad.bitstream import encode_scene
from radcomp_plugins.vqad.scene import VqadLevel


def row(name: str, seed: int, psnr: float) -> dict:
    levels = [
        {"level": level, "end": 1000 * level, "psnr": psnr - 6 + level, "bits_per_index": 2.5} for level in (5, 6)
    ]
    return {"row": name, "seed": seed, "psnr": psnr, "ssim": 0.9, "bytes": 6000, "packed": 9000, "levels": levels}


def test_packed_and_order_0_sizes_by_hand() -> None:
    indices = np.array([0, 1, 2, 3] * 10 + [0] * 3, np.uint8)
    level = VqadLevel(3, np.arange(1), indices, np.zeros((8, 2), np.float16), 3)
    sizes = vqad_file.alternatives(level)
    assert sizes["packed_bytes"] == -(-43 * 3 // 8)
    share = np.array([13, 10, 10, 10]) / 43
    assert sizes["order0_bytes"] == pytest.approx(-(share * np.log2(share)).sum() * 43 / 8)


def test_a_scene_is_measured() -> None:
    scene = toy_scene((3, 4))
    result = vqad_file.measure(scene, 1)
    assert result["bytes"] == len(encode_scene(scene))
    vertices = sum(len(level.indices) for level in scene.levels)
    assert result["vertices"] == vertices and result["grid_mb"] == pytest.approx(vertices * 6 * 2 / 1e6)
    assert 0 < result["saved_over_packed"] < 1
    with pytest.raises(InputError, match="either"):
        vqad_file.VqadFile().main()


def test_tables_average_over_seeds_and_say_how_far_below_full() -> None:
    rows = [row("full precision", seed, 30.0 + seed) for seed in (0, 1)]
    rows += [row("VQ-AD, 6 bits", seed, 29.5 + seed) for seed in (0, 1)]
    lines = vqad_tables.markdown("table2", rows).splitlines()
    assert lines[4].startswith("| full precision | 2 | 30.50 ± 0.50 | 0.00 |") and lines[4].endswith("32.72, 20,000 |")
    assert lines[5].startswith("| VQ-AD, 6 bits | 2 | 30.00 ± 0.50 | 0.50 |")
    rates = vqad_tables.rate_by_level(rows).splitlines()
    assert rates[4] == "| VQ-AD, 6 bits | 5 | 5,000 | 29.00 ± 0.50 | 2.50 ± 0.00 |"
    assert vqad_tables.spread([1.234], 1) == "1.2"
