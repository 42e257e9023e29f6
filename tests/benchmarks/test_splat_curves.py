"""Rate-distortion curves: what a row says, the survey's layout, and a run that goes on where it was killed."""

import csv
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import splat_curves
from benchmarks.splat_curves import PUBLISHED_BYTES, SAME_DB, Curves, Judge, markdown, run_command, times, write_survey
from radcomp_plugins.core.files import read_json
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.registry import read_splats, write_splats
from radcomp_plugins.splats.formats.spz import write_spz
from radcomp_plugins.splats.gaussians import Gaussians


@pytest.fixture
def ball() -> Gaussians:
    """A hundred splats of SH degree 1 in a ball."""
    n = 100
    means = torch.randn(n, 3) * 0.3
    return Gaussians(
        means, torch.randn(n, 4), torch.full((n, 3), -2.0), torch.full((n,), 2.0), torch.randn(n, 3),
        0.3 * torch.randn(n, 3, 3),
    )  # fmt: skip


def test_a_scene_is_written_measured_and_not_measured_again(
    tmp_path: Path, ball: Gaussians, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = tmp_path / "scene.ply"
    write_splats(scene, ball)
    settings = {"formats": ("spz",), "degrees": (3, 1, 0), "views": 2, "size": 32}
    curves = Curves(scene, tmp_path / "out", **settings, published=(f"kept={scene}",), file=(f"mine:copy={scene}",))
    curves.main()
    rows = {(row["method"], row["label"]): row for row in read_json(tmp_path / "out" / "curves.json")["rows"]}
    assert set(rows) == {("radcomp", "ply"), ("radcomp", "spz, SH 1"), ("radcomp", "spz, SH 0"), ("mine", "copy"),
                         ("lightgaussian-container", "kept")}  # fmt: skip
    assert rows["radcomp", "ply"]["psnr"] == SAME_DB == rows["mine", "copy"]["psnr"]
    first, flat = rows["radcomp", "spz, SH 1"], rows["radcomp", "spz, SH 0"]
    assert 25 < first["psnr"] < SAME_DB and flat["psnr"] < first["psnr"] - 3 and flat["bytes"] < first["bytes"]
    assert first["encode_s"] > 0 and first["command_s"] > first["encode_s"] and first["command_mb"] > 50
    assert rows["lightgaussian-container", "kept"]["bytes"] == round(PUBLISHED_BYTES * len(ball))
    with open(tmp_path / "out" / "radcomp" / "scenes" / "out.csv") as file:
        table = list(csv.DictReader(file))
    assert [row["Submethod"] for row in table] == ["ply", "spz, SH 1", "spz, SH 0"]
    assert int(table[1]["Size [Bytes]"]) == first["bytes"] and table[1]["#Gaussians"] == "100"
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000

    def never(command: object) -> None:
        raise AssertionError(command)

    written = (tmp_path / "out" / "curves.json").read_text()
    source_only = [run_command]
    monkeypatch.setattr(splat_curves, "run_command", lambda c: source_only.pop()(c) if source_only else never(c))
    Curves(scene, tmp_path / "out", **settings).main()
    assert (tmp_path / "out" / "curves.json").read_text() == written


def test_a_peers_spz_with_y_up_is_turned_back(tmp_path: Path, ball: Gaussians) -> None:
    path = tmp_path / "peer.spz"
    write_spz(path, ball, turn=True)
    curves = Curves(path, tmp_path)
    judge = Judge(ball, None, 2, 32)
    there, turned = curves.read("splat-transform", path), curves.read("radcomp", path)
    assert judge(there)["psnr"] > judge(turned)["psnr"] + 10


def test_decoding_is_measured_by_ours_and_by_the_peer_where_it_can(tmp_path: Path, ball: Gaussians) -> None:
    for name in ("a.spz", "a.rcs"):
        write_splats(tmp_path / name, ball)
    peer = tmp_path / "peer.py"
    peer.write_text("import shutil, sys\nassert sys.argv[1:4] == ['-w', '-g', 'cpu']\nshutil.copy(*sys.argv[4:])")
    curves = Curves(tmp_path / "a.spz", tmp_path, peer=f"{sys.executable} {peer}")
    curves.folder = tmp_path
    row = {
        "method": "radcomp",
        "label": "x",
        "gaussians": 100,
        "command_s": 1.25,
        "command_cpu_s": 2.0,
        "command_mb": 1234.0,
    }
    only_ours = curves.decoded(tmp_path / "a.rcs")
    assert set(only_ours) == {"decode_ours_seconds", "decode_ours_cpu_seconds", "decode_ours_megabytes"}
    assert len(read_splats(tmp_path / "decoded.ply")) == 100
    both = curves.decoded(tmp_path / "a.spz")
    assert both["decode_ours_megabytes"] > both["decode_peer_megabytes"] > 5
    assert (tmp_path / "decoded.ply").read_bytes() == (tmp_path / "a.spz").read_bytes()
    lines = times([{**row, **both}, {**row, **only_ours}, {"method": "a", "label": "y"}]).splitlines()
    assert len(lines) == 4 and lines[2].startswith("| radcomp: x | 100 | 1.2 s / 2.0 s / 1,234 MB | ")
    assert lines[3].endswith(" MB |  |")


def test_a_command_is_measured_and_its_failure_is_one_line() -> None:
    cost = run_command([sys.executable, "-c", "x = bytearray(300_000_000); print('done')"])
    assert cost.printed == "done\n" and 285 < cost.megabytes < 330 and 0 < cost.cpu_seconds
    with pytest.raises(InputError, match="failed with status 3: oh no"):
        run_command([sys.executable, "-c", "print('oh no'); raise SystemExit(3)"])


def test_the_table_has_ratios_to_the_first_row_and_the_survey_no_made_up_lpips(tmp_path: Path) -> None:
    rows = [
        {"method": "a", "label": "x", "bytes": 900, "gaussians": 9, "psnr": SAME_DB, "ssim": 1.0, "decode_s": 0.1},
        {"method": "a", "label": "y", "bytes": 90, "gaussians": 4, "psnr": 30.126, "ssim": 0.9, "decode_s": 0.2},
    ]
    text = markdown(rows)
    assert "| a: x | 9 | 900 | 1.0 | same |" in text and "| a: y | 4 | 90 | 10.0 | 30.13 |" in text
    write_survey(tmp_path / "s", "chair", rows)
    lines = (tmp_path / "s" / "chair.csv").read_text().splitlines()
    assert lines == ["Submethod,PSNR,SSIM,LPIPS,Size [Bytes],#Gaussians", "x,100.000,1.0000,,900,9",
                     "y,30.126,0.9000,,90,4"]  # fmt: skip


@pytest.mark.parametrize("text", ["nothing", "a:b", "a:b="])
def test_a_file_without_method_label_and_path_is_refused(tmp_path: Path, ball: Gaussians, text: str) -> None:
    curves = Curves(tmp_path / "scene.ply", tmp_path, file=(text,))
    with pytest.raises(InputError, match="expected METHOD:LABEL=PATH"):
        curves.given()
