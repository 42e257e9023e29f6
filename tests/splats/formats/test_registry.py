"""The format is told by content, and whatever is unknown is answered with the list of what is known."""

import random
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.registry import FORMATS, read_splats, splat_format_of, write_splats

DATA = Path(__file__).resolve().parents[2] / "data"


@pytest.mark.parametrize("name", [f.name for f in FORMATS.values() if f.has_magic])
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


@pytest.mark.parametrize("content", [b"", b"PLY\n", b"\x89PNG", b"NGS", b"\0\1"])
def test_unknown_content(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.ply: .*expected \.ply .*\.sog") as error:
        read_splats(path)
    assert "\n" not in str(error.value)


def test_formats_without_magic_go_by_their_suffix(tmp_path: Path, make_scene) -> None:
    path = tmp_path / "A.SPLAT"
    write_splats(path, make_scene(5, 0))
    assert splat_format_of(path) == "splat" and len(read_splats(path)) == 5
    with pytest.raises(InputError, match=r"starts with"):
        read_splats(path.rename(tmp_path / "a.ply"))
    with pytest.raises(InputError, match="cannot be written"):
        write_splats(tmp_path / "a.ksplat", make_scene(5, 0))
    (tmp_path / "a.ksplat").write_bytes(b"ply")
    with pytest.raises(InputError, match="expected a .ksplat header"):
        read_splats(tmp_path / "a.ksplat")


def test_the_longest_suffix_counts(tmp_path: Path, make_scene) -> None:
    for name, expected in (("a.compressed.ply", "compressed-ply"), ("b.ply", "ply"), ("compressed.ply", "ply")):
        write_splats(tmp_path / name, make_scene(5, 0))
        assert splat_format_of(tmp_path / name) == expected


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


def damage(data: bytes, chance: random.Random, head: int) -> bytes:
    """A few bytes changed, cut out or put in, mostly in the first `head`."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5, 20))):
        i = min(chance.randrange(head if chance.random() < 0.8 else len(data)), len(out) - 1)
        match chance.randrange(5):
            case 0:
                del out[i : i + chance.randrange(1, 40)]
            case 1:
                out[i:i] = chance.randbytes(chance.randrange(1, 9))
            case _:
                out[i] = chance.randrange(256)
    return bytes(out)


@pytest.mark.parametrize("name", ["golden.ply", "golden.sog"])
@pytest.mark.parametrize("seed", range(100))
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path: Path, name: str, seed: int) -> None:
    data = (DATA / name).read_bytes()
    head = data.find(b"end_header") + 10 if name.endswith(".ply") else len(data)
    path = tmp_path / name
    path.write_bytes(damage(data, random.Random(seed), head))
    read_or_refused(path)


@pytest.mark.parametrize("seed", range(100))
def test_damage_that_no_checksum_tells(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with zipfile.ZipFile(DATA / "golden.sog") as archive:
        archive.extractall(tmp_path)
    path = tmp_path / chance.choice(sorted(p.name for p in tmp_path.iterdir()))
    path.write_bytes(damage(path.read_bytes(), chance, 40))
    read_or_refused(tmp_path)


def read_or_refused(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            assert bool(read_splats(path).finite().all())
        except InputError as error:
            assert "\n" not in str(error) and path.name in str(error)
