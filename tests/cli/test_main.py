"""`radcomp`: subcommands, one-line errors, bare flags, and a fast --help."""

import json
import re
import subprocess
import sys
import typing

import numpy as np
import pytest

from radcomp_plugins.cli import main
from radcomp_plugins.cli.export import ExportLightGaussian, ExportSplats, spell_out_flags
from radcomp_plugins.core.files import write_manifest
from radcomp_plugins.errors import InputError


def run(monkeypatch, *args: str) -> int:
    """The console script's exit code."""
    monkeypatch.setattr(sys, "argv", ["radcomp", *args])
    try:
        main.entrypoint()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def write_splat_ply(path, count: int = 2) -> None:
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", *(f"scale_{i}" for i in range(3))]
    names += [f"rot_{i}" for i in range(4)]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    header += [f"property float {name}" for name in names]
    rows = np.tile(np.arange(len(names), dtype="<f4") / 10, (count, 1))
    path.write_bytes(("\n".join([*header, "end_header"]) + "\n").encode() + rows.tobytes())


def test_help_of_every_command_names_its_fields(monkeypatch, capsys):
    assert run(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("export", "info"))
    assert run(monkeypatch, "export", "lightgaussian", "--help") == 0
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in ("--load-config", "--output-dir", "--overwrite", "--formats"))


COMMAND_NAMES = [typing.get_args(command)[1].name for command in main.COMMANDS]


@pytest.mark.parametrize("name", COMMAND_NAMES)
def test_every_command_has_help_with_a_text_for_each_field(monkeypatch, capsys, name):
    assert run(monkeypatch, name, "--help") == 0
    shown = capsys.readouterr().out
    assert f"radcomp {name}" in shown and len(shown.splitlines()) > 5


def test_unknown_flags_are_refused_with_their_name(monkeypatch, capsys):
    assert run(monkeypatch, "info", "--no-such-flag") == 2
    assert "--no-such-flag" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("args", "spelled"),
    [
        (["--overwrite"], ["--overwrite", "True"]),
        (["--overwrite", "--output-dir", "d"], ["--overwrite", "True", "--output-dir", "d"]),
        (["--overwrite", "False"], ["--overwrite", "False"]),
        (["--output-dir", "d"], ["--output-dir", "d"]),
        ([], []),
    ],
)
def test_a_bare_flag_means_true(args, spelled):
    assert spell_out_flags(args) == spelled


def test_flags_reach_the_export(monkeypatch):
    seen = []
    monkeypatch.setattr(ExportLightGaussian, "main", lambda self: seen.append(self))
    code = run(
        monkeypatch, "export", "lightgaussian", "--load-config", "c.yml", "--output-dir", "d", "--overwrite",
        "--formats", "ply", "--with-quality", "False",
    )  # fmt: skip
    assert code == 0
    assert (seen[0].overwrite, seen[0].formats, seen[0].with_quality) == (True, ("ply",), False)


def test_a_users_mistake_is_one_line_and_exit_code_1(monkeypatch, capsys):
    def fail(self):
        raise InputError("scene [bold].ply: " + "long " * 60)

    monkeypatch.setattr(ExportSplats, "main", fail)
    assert run(monkeypatch, "export", "splats", "--load-config", "a", "--output-dir", "b") == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: scene [bold].ply")


def test_a_missing_system_library_is_one_line_and_other_errors_keep_their_traceback(monkeypatch, capsys):
    def fail_with(error):
        def fail(self):
            raise error

        monkeypatch.setattr(ExportSplats, "main", fail)

    fail_with(OSError("libGL.so.1: cannot open shared object file: No such file or directory"))
    assert run(monkeypatch, "export", "splats", "--load-config", "a", "--output-dir", "b") == 1
    assert "libgl1" in capsys.readouterr().out
    fail_with(OSError("something else"))
    with pytest.raises(OSError, match="something else"):
        run(monkeypatch, "export", "splats", "--load-config", "a", "--output-dir", "b")


def test_export_splats_writes_refuses_and_overwrites(monkeypatch, capsys, tmp_path):
    write_splat_ply(tmp_path / "in.ply")
    args = ("export", "splats", "--load-config", str(tmp_path / "in.ply"), "--output-dir", str(tmp_path / "out"))
    assert run(monkeypatch, *args) == 0
    written = tmp_path / "out/scene.ply"
    assert f"{written.stat().st_size:,} bytes" in capsys.readouterr().out
    assert run(monkeypatch, *args) == 1
    assert "exists already" in capsys.readouterr().out
    assert run(monkeypatch, *args, "--overwrite") == 0


def test_info_describes_the_machine_and_a_scene(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, "info", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["schema_version"] == 1 and facts["nerfstudio"].startswith("1.1") and facts["device"]
    write_splat_ply(tmp_path / "in.ply", count=3)
    assert run(monkeypatch, "info", str(tmp_path / "in.ply"), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["gaussians"] == 3 and facts["sh degree"] == 0
    assert facts["bytes"] == (tmp_path / "in.ply").stat().st_size
    assert run(monkeypatch, "info", str(tmp_path / "in.ply")) == 0
    assert re.search(r"^gaussians +3$", capsys.readouterr().out, re.MULTILINE)
    assert run(monkeypatch, "info", str(tmp_path / "nothing")) == 1


def test_info_lists_the_files_of_an_asset_and_describes_its_smallest_scene(monkeypatch, capsys, tmp_path):
    write_splat_ply(tmp_path / "scene.ply", count=3)
    write_splat_ply(tmp_path / "scene.small.ply", count=2)
    write_manifest(tmp_path, {"format": "radcomp-test", "version": 1})
    assert run(monkeypatch, "info", str(tmp_path), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["format"] == "radcomp-test" and facts["gaussians"] == 2
    assert facts["scene.ply"] == (tmp_path / "scene.ply").stat().st_size
    (tmp_path / "scene.ply").write_bytes(b"ply, but altered")
    assert run(monkeypatch, "info", str(tmp_path)) == 1


def test_help_imports_nothing_heavy():
    """Also bounds its time: without torch, nerfstudio's models and numba it takes a fraction of a second."""
    code = (
        "import sys, time; start = time.process_time(); sys.argv = ['radcomp', '--help']\n"
        "from radcomp_plugins.cli.main import entrypoint\n"
        "try: entrypoint()\n"
        "except SystemExit: pass\n"
        "heavy = sorted({'torch', 'numba', 'gsplat', 'nerfstudio.models'} & set(sys.modules))\n"
        "print('HEAVY', heavy, time.process_time() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, seconds = done.stdout.split("HEAVY")[1].rsplit(maxsplit=1)
    assert heavy.strip() == "[]" and float(seconds) < 1.5
