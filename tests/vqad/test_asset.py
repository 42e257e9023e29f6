"""What the exporter does to a scene before it is written, and what `radcomp info` says of the file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from vqad_scenes import same_bits, toy_scene

from radcomp_plugins.errors import InputError
from radcomp_plugins.vqad.asset import FileSettings, settle
from radcomp_plugins.vqad.bitstream import decode_scene, encode_scene, sizes_of, write_scene
from radcomp_plugins.vqad.info import describe, is_vqad


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
def test_settled_codes_draw_the_same(bits: int) -> None:
    scene = toy_scene(bits=bits)
    settled = settle(scene, FileSettings())
    settled.check()
    for before, after in zip(scene.levels, settled.levels, strict=True):
        assert same_bits(before.features(), after.features())
        used = len(np.unique(before.indices))
        assert sorted(np.unique(after.indices)) == list(range(used))
        assert not after.codebook[used:].any()
    assert same_bits(scene.decoder.weights[0], settled.decoder.weights[0])


def test_settling_twice_changes_nothing_more() -> None:
    once = settle(toy_scene(bits=5), FileSettings(codebook_digits=4))
    assert encode_scene(settle(once, FileSettings(codebook_digits=4))) == encode_scene(once)


def test_near_codes_get_near_numbers() -> None:
    scene = toy_scene(bits=6)
    level = scene.levels[-1]
    # Features on a line, numbered at random.
    line = np.random.default_rng(0).permutation(64)[:, None] * np.ones(scene.num_features)
    settled = settle(replace(scene, levels=[replace(level, codebook=line.astype(np.float16))]), FileSettings())
    steps = np.diff(settled.levels[0].codebook[: len(np.unique(level.indices)), 0].astype(float))
    assert (steps > 0).all() or (steps < 0).all()


def test_fewer_digits_make_smaller_heads() -> None:
    scene = toy_scene()
    sizes = []
    for digits in (10, 6, 2):
        settled = settle(scene, FileSettings(decoder_digits=digits, codebook_digits=digits))
        sizes.append(decode_scene(encode_scene(settled)).chunks[1].end)
        error = np.abs(settled.decoder.weights[0].astype(float) - scene.decoder.weights[0].astype(float))
        assert error.max() <= 2.0 ** -(digits + 1) * np.abs(scene.decoder.weights[0]).max() + 1e-9
    assert sizes[0] > sizes[1] > sizes[2]
    with pytest.raises(InputError, match="decoder_digits is 11"):
        FileSettings(decoder_digits=11)


def test_sizes_add_up_to_the_file() -> None:
    scene = toy_scene()
    data = encode_scene(scene)
    decoded = decode_scene(data)
    sizes = sizes_of(data, scene)
    head = decoded.chunks[0].end
    parts = sum(size["octree_bytes"] + size["index_bytes"] + size["codebook_bytes"] for size in sizes)
    # Counts and lengths of the streams: a few bytes for each level.
    assert 0 < len(data) - head - parts < 30 * len(sizes)
    assert sizes[-1]["end"] == len(data)
    assert [size["vertices"] for size in sizes] == [len(level.indices) for level in scene.levels]


def test_info_of_a_whole_and_of_a_cut_file(tmp_path: Path) -> None:
    scene = toy_scene()
    write_scene(tmp_path / "scene.vqad", scene)
    assert is_vqad(tmp_path) and is_vqad(tmp_path / "scene.vqad") and not is_vqad(tmp_path / "other")
    facts = describe(tmp_path)
    assert facts["bytes"] == (tmp_path / "scene.vqad").stat().st_size
    assert "cut off" not in facts and f"{facts['bytes']:,} so far" in facts["level 4"]
    cut = tmp_path / "cut.vqad"
    cut.write_bytes((tmp_path / "scene.vqad").read_bytes()[:-1])
    assert "missing: 4" in describe(cut)["cut off"] and "level 4" not in describe(cut)
    with pytest.raises(InputError, match=r"no scene\.vqad"):
        describe(tmp_path / "nothing")
