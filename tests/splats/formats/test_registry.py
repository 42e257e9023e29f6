"""The format is told by content, and whatever is unknown is answered with the list of what is known."""

from pathlib import Path

import pytest
import torch

from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.registry import FORMATS, read_splats, splat_format_of, write_splats


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_written_by_suffix_and_read_by_content(tmp_path: Path, make_scene, name: str) -> None:
    g = make_scene(50, 1, antialiased=True)
    path = tmp_path / f"scene{FORMATS[name].suffixes[0].upper()}"
    parts = write_splats(path, g)
    assert sum(parts.values()) == path.stat().st_size
    renamed = path.rename(tmp_path / "no suffix")
    assert splat_format_of(renamed) == name
    read = read_splats(renamed)
    assert (len(read), read.sh_degree, read.antialiased) == (50, 1, True)
    assert float((read.means.sort(dim=0).values - g.means.sort(dim=0).values).abs().max()) < 0.1


def test_options_reach_the_writer(tmp_path: Path, make_scene) -> None:
    g = make_scene(10, 1)
    write_splats(tmp_path / "a.ply", g, sh_degree=3)
    assert read_splats(tmp_path / "a.ply").sh_degree == 3
    with pytest.raises(InputError, match="exists already"):
        write_splats(tmp_path / "a.ply", g)
    write_splats(tmp_path / "a.ply", g, overwrite=True)
    assert torch.equal(read_splats(tmp_path / "a.ply").means, g.means)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08\0", b"glTF", b"PLY\n", b"\x89PNG"])
def test_unknown_content(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.ply: .*expected \.ply .*\.sog") as error:
        read_splats(path)
    assert "\n" not in str(error.value)


def test_unknown_suffix_missing_file_and_folder(tmp_path: Path, make_scene) -> None:
    with pytest.raises(InputError, match=r"unknown splat format '\.xyz', expected \.ply"):
        write_splats(tmp_path / "a.xyz", make_scene(3, 0))
    with pytest.raises(InputError, match="no such file"):
        read_splats(tmp_path / "none.ply")
    with pytest.raises(InputError, match=r"folder without meta\.json"):
        read_splats(tmp_path)


def test_a_zip_that_is_no_sog(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\5\6" + bytes(18))
    with pytest.raises(InputError, match=r"no file 'meta\.json'"):
        read_splats(tmp_path / "a.zip")
