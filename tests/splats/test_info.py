"""Facts of splat files: counts, what was left out, ranges, and the shares of the attributes."""

import gzip
import math
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.ply import write_ply
from radcomp_plugins.splats.formats.registry import GLTF_FRAME, write_splats
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.info import describe_file, describe_scene


def scene() -> Gaussians:
    """Three Gaussians of scales 0.1, 0.2, 0.4 and opacities 0.25, 0.5, 0.75."""
    means = torch.tensor([[0.0, 1.0, -2.0], [1.0, 2.0, 0.0], [-1.0, 5.0, 3.0]])
    scales = torch.tensor([0.1, 0.2, 0.4]).log()[:, None].expand(3, 3).contiguous()
    quats = torch.tensor([[1.0, 0, 0, 0]]).repeat(3, 1)
    opacities = torch.tensor([0.25, 0.5, 0.75]).logit()
    return Gaussians(means, quats, scales, opacities, torch.zeros(3, 3), torch.zeros(3, 3, 3), antialiased=True)


def test_facts_of_a_scene() -> None:
    assert describe_scene(scene()) == {
        "gaussians": 3,
        "sh degree": 1,
        "antialiased": True,
        "bounds": "-1..1 1..5 -2..3",
        "scales": {"least": 0.1, "median": 0.2, "greatest": 0.4},
        "opacities": {"least": 0.25, "median": 0.5, "greatest": 0.75},
    }
    huge = replace(scene(), scales=torch.full((3, 3), 3e4))
    assert math.isfinite(describe_scene(huge)["scales"]["greatest"])


def test_facts_of_a_file(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", scene())
    facts = describe_file(tmp_path / "a.ply")
    assert facts["bytes"] == (tmp_path / "a.ply").stat().st_size == sum(p["bytes"] for p in facts["parts"])
    assert facts["attributes"]["shN"] == {"bytes": 3 * 36, "bits per gaussian": 288.0}
    assert facts["not finite"] == 0 and "warnings" not in facts and "unpacked" not in facts["parts"][0]
    write_splats(tmp_path / "a.glb", scene())
    assert describe_file(tmp_path / "a.glb")["frame"] == GLTF_FRAME


def test_what_reader_and_parts_both_warn_of_is_told_once(tmp_path: Path) -> None:
    """One Gaussian of SH degree 4 in an .spz of version 3: 16 bytes of header, 20 of attributes, 72 of SH."""
    head = struct.pack("<4sIIBBBB", b"NGSP", 3, 1, 4, 12, 0, 0)
    (tmp_path / "a.spz").write_bytes(gzip.compress(head + bytes(20) + bytes(72)))
    told = describe_file(tmp_path / "a.spz")["warnings"]
    assert len(told) == 1 and "SH of degree 4" in told[0]


def test_gaussians_that_are_left_out_are_counted_and_told(tmp_path: Path) -> None:
    write_ply(tmp_path / "a.ply", scene())
    data = bytearray((tmp_path / "a.ply").read_bytes())
    row = (len(data) - data.index(b"end_header\n") - len(b"end_header\n")) // 3
    data[-row : -row + 4] = b"\0\0\xc0\x7f"
    (tmp_path / "a.ply").write_bytes(data)
    facts = describe_file(tmp_path / "a.ply")
    assert facts["gaussians"] == 2 and facts["not finite"] == 1
    assert facts["attributes"]["means"]["bits per gaussian"] == 96.0
    assert facts["warnings"] == [f"{tmp_path / 'a.ply'}: left out 1 of 3 Gaussians that hold NaN or infinity"]
    (tmp_path / "a.ply").write_bytes(data[:-1])
    with pytest.raises(InputError, match="cut off") as error:
        describe_file(tmp_path / "a.ply")
    assert "\n" not in str(error.value)
