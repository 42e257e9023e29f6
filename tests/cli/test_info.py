"""`radcomp info` on splat files: the table, its JSON, and one line for a broken file."""

import json
import re
import warnings
from pathlib import Path

import pytest
import torch

from radcomp_plugins.cli.main import run
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.registry import FORMATS, write_splats
from radcomp_plugins.splats.gaussians import Gaussians


def scene(count: int = 200) -> Gaussians:
    generator = torch.Generator().manual_seed(0)
    means, quats, rest = (torch.randn(count, n, generator=generator) for n in (3, 4, 9))
    scales = torch.full((count, 3), -3.0)
    return Gaussians(means, quats, scales, torch.ones(count), torch.zeros(count, 3), rest.reshape(-1, 3, 3) / 9)


def shown(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    run(["info", *args])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", [f.name for f in FORMATS.values() if f.write is not None])
def test_every_format_is_shown_with_its_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = tmp_path / f"scene{FORMATS[name].suffixes[0]}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_splats(path, scene())
    facts = json.loads(shown(capsys, str(path), "--json"))
    assert facts["schema_version"] == 1 and facts["file format"] == name and facts["frame"] == FORMATS[name].frame
    assert sum(row["bytes"] for row in facts["attributes"].values()) == facts["bytes"] == path.stat().st_size
    text = shown(capsys, str(path))
    size = facts["attributes"]["means"]["bytes"]
    line = rf"means +{size:,} bytes +{100 * size / facts['bytes']:.1f} % +{8 * size / 200:.2f} bits per Gaussian"
    assert re.search(line, text) and re.search(r"^antialiased +False$", text, re.MULTILINE)
    assert re.search(r"^scales .*, median 0\.0[45]\d*$", text, re.MULTILINE)
    assert re.search(r"^not finite +0$", text, re.MULTILINE)


def test_a_compressed_stream_is_shown_with_its_unpacked_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_splats(tmp_path / "a.spz", scene())
    assert re.search(r"positions +[\d,]+ bytes, 1,800 unpacked, means", shown(capsys, str(tmp_path / "a.spz")))


@pytest.mark.parametrize("name", [f.name for f in FORMATS.values() if f.write is not None])
def test_a_broken_file_is_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"scene{FORMATS[name].suffixes[0]}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_splats(path, scene())
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError) as error:
        run(["info", str(path)])
    assert str(path) in str(error.value) and "\n" not in str(error.value)
