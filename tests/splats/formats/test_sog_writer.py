"""How long the SH palette of a .sog is where nobody says, and that one from another file stays."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from radcomp_plugins.splats.formats.sog import read_sog, write_sog
from radcomp_plugins.splats.formats.sog_writer import default_palette_size


@pytest.mark.parametrize("count, size", [(1, 64), (2047, 64), (2048, 128), (10**9, 65536)])
def test_sizes_of_the_palette_unasked(count: int, size: int) -> None:
    assert default_palette_size(count) == size


@pytest.mark.parametrize("count, different, size", [(400, 299, 299), (400, 300, 64), (10**6, 70_000, 62_464)])
def test_sh_that_were_a_palette_stay_one(count: int, different: int, size: int) -> None:
    assert default_palette_size(count, different) == size


def test_a_palette_of_another_file_is_kept(tmp_path: Path, make_scene) -> None:
    scene = make_scene(400, 1)
    scene = replace(scene, shN=scene.shN[torch.arange(400) % 200])
    write_sog(tmp_path / "a.sog", scene)
    first = read_sog(tmp_path / "a.sog")
    assert first.different_sh() == 200 == len(torch.unique(first.shN.flatten(1), dim=0))
    write_sog(tmp_path / "b.sog", first)
    assert torch.equal(read_sog(tmp_path / "b.sog").shN, first.shN)
