"""`radcomp compress` reads its flags, and says in one line what is wrong with them."""

import json
from pathlib import Path

import pytest
import torch

from radcomp_plugins.cli.compress import Compress
from radcomp_plugins.cli.main import run
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.ply import write_ply
from radcomp_plugins.splats.gaussians import Gaussians
from radcomp_plugins.splats.rate_control import Goal, psnr_floor


def command(**flags: object) -> Compress:
    return Compress(Path("a.ply"), Path("b.rcs"), **flags)  # type: ignore[arg-type]


def test_flags_become_a_goal() -> None:
    assert command().goal() == Goal()
    assert command(target_size="5MB", max_gaussians=7).goal() == Goal(5_000_000, None, 7)
    assert command(min_psnr=31.5).goal() == Goal(psnr=31.5)
    assert command(max_loss="0.3 dB", teacher_psnr=33.0).goal() == Goal(psnr=psnr_floor(0.3, 33.0))


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"min_psnr": 30.0, "max_loss": "1dB"}, "give one of them"),
        ({"max_loss": "little"}, "expected dB such as"),
        ({"target_size": "small"}, "expected a number of bytes"),
        ({"views": 0}, "expected at least 1, 16 and 0"),
    ],
)
def test_flags_that_are_wrong(flags: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        command(**flags).goal()


def test_a_file_is_written_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n = 50
    generator = torch.Generator().manual_seed(0)
    colours = torch.randn(n, 3, generator=generator), torch.zeros(n, 0, 3)
    quats = torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1)
    g = Gaussians(torch.randn(n, 3, generator=generator), quats, torch.full((n, 3), -1.0), torch.ones(n), *colours)
    write_ply(tmp_path / "a.ply", g)
    out = tmp_path / "b.rcs"
    run(["compress", str(tmp_path / "a.ply"), str(out), "--views", "2", "--size", "24", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["bytes"] == out.stat().st_size and result["gaussians"] == 50 and result["schema_version"] == 1
