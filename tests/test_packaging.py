"""What an installation brings: entry points that load fast and lightly, documented fields, a complete wheel."""

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
METHODS = {
    *("splatfacto-tiny", "nerfacto-tiny", "zipnerf-torch", "zipnerf-torch-tiny"),
    *("lightgaussian", "lightgaussian-paper", "lightgaussian-tiny", "lightgaussian-rcs-tiny"),
    *("smerf", "smerf-large", "smerf-large-tiny", "smerf-paper", "smerf-tiny"),
    *("kilonerf", "kilonerf-paper", "kilonerf-tiny"),
    *("vqad", "vqad-paper", "vqad-tiny"),
}
SOURCES = sorted([*ROOT.glob("radcomp_plugins/**/*.py"), *ROOT.glob("method_configs/**/*.py")])


def run_python(code: str) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_method_is_an_entry_point_with_its_own_name():
    from nerfstudio.configs.method_configs import all_descriptions, all_methods
    from nerfstudio.plugins.types import MethodSpecification

    ours = {point.name: point.load() for point in entry_points(group="nerfstudio.method_configs") if is_ours(point)}
    assert set(ours) == METHODS
    for name, specification in ours.items():
        assert isinstance(specification, MethodSpecification)
        assert specification.config.method_name == name and name in all_methods
        assert all_descriptions[name] and "\n" not in all_descriptions[name]


def is_ours(point) -> bool:
    return point.value.startswith("radcomp_plugins.")


def test_importing_the_method_configs_is_fast_and_imports_nothing_heavy():
    """nerfstudio itself imports gsplat, so it is the importing module that counts."""
    code = """
import builtins, json, sys, time
import importlib.metadata
real_import, real_points, heavy = builtins.__import__, importlib.metadata.entry_points, []

def watch(name, globals=None, *args, **kwargs):
    importer = (globals or {}).get("__name__", "")
    if importer.startswith("radcomp_plugins") and name.split(".")[0] in ("numba", "gsplat", "faiss", "open3d"):
        heavy.append([importer, name])
    return real_import(name, globals, *args, **kwargs)

class NoPoints:
    names = ()

# nerfstudio alone first, so that what is timed is what the plugins add.
def stock_points(**kwargs):
    return NoPoints() if kwargs.get("group", "").startswith("nerfstudio.") else real_points(**kwargs)

importlib.metadata.entry_points = stock_points
import nerfstudio.configs.method_configs
importlib.metadata.entry_points = real_points
builtins.__import__ = watch
before, start = set(sys.modules), time.process_time()
for point in real_points(group="nerfstudio.method_configs"):
    if point.value.startswith("radcomp_plugins."):
        point.load()
seconds = time.process_time() - start
new = sorted({name.split(".")[0] for name in set(sys.modules) - before})
print("RESULT" + json.dumps({"heavy": heavy, "seconds": seconds, "new": new}))
"""
    result = json.loads(run_python(code).split("RESULT")[1])
    assert result["heavy"] == []
    assert not {"numba", "faiss", "open3d", "matplotlib", "plyfile"} & set(result["new"])
    assert "radcomp_plugins" in result["new"]
    assert result["seconds"] < 0.5


def test_core_imports_no_nerfstudio_and_imports_run_downwards():
    """core < splats < teachers < methods < cli; scenes stand on core and splats."""
    above = {
        "core": ("nerfstudio", "radcomp_plugins.splats", "radcomp_plugins.teachers", "radcomp_plugins.lightgaussian",
                 "radcomp_plugins.scenes", "radcomp_plugins.cli"),
        "splats": ("radcomp_plugins.teachers", "radcomp_plugins.lightgaussian", "radcomp_plugins.cli"),
        "teachers": ("radcomp_plugins.lightgaussian", "radcomp_plugins.cli"),
        "lightgaussian": ("radcomp_plugins.cli",),
    }  # fmt: skip
    wrong = []
    for path in SOURCES:
        room = path.relative_to(ROOT).parts[1]
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [(path.name, name) for name in names if name.startswith(above.get(room, ()))]
    assert wrong == []


def undocumented(path: Path) -> list[str]:
    """Fields of config and command dataclasses without a docstring under them, as `file:line Class.field`."""
    missing = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ClassDef) or not any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            continue
        is_command = any(isinstance(item, ast.FunctionDef) and item.name == "main" for item in node.body)
        if not (node.name.endswith("Config") or is_command):
            continue
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and ast.unparse(field.target) != "_target":
                documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if not documented:
                    missing.append(f"{path.name}:{field.lineno} {node.name}.{ast.unparse(field.target)}")
    return missing


def test_every_field_of_a_config_or_command_says_what_it_is():
    assert [line for path in SOURCES for line in undocumented(path)] == []


def test_the_check_for_documentation_finds_a_bare_field(tmp_path):
    path = tmp_path / "a.py"
    path.write_text('@dataclass\nclass AConfig:\n    x: int = 1\n    y: int = 2\n    """Said."""\n')
    assert undocumented(path) == ["a.py:3 AConfig.x"]


def test_modules_stay_readable():
    assert [path.name for path in SOURCES if len(path.read_text().splitlines()) > 600] == []


def wheel_files(tmp_path: Path) -> tuple[Path, list[str]]:
    """Build a wheel from a copy of the sources, without a network."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("radcomp_plugins", "method_configs"):
        shutil.copytree(ROOT / folder, tmp_path / "source" / folder, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), "source"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    return wheel, zipfile.ZipFile(wheel).namelist()


@pytest.mark.slow
def test_the_wheel_is_complete_and_works_without_the_repository(tmp_path):
    wheel, names = wheel_files(tmp_path)
    packaged = {name for name in names if ".dist-info/" not in name}
    expected = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("radcomp_plugins/**/*") if path.is_file()}
    expected |= {f"radcomp_plugins/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("method_configs/**/*.py")}
    expected = {name for name in expected if "__pycache__" not in name}
    assert packaged == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)

    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import nerfstudio.configs.method_configs as m, radcomp_plugins.method_configs as ours\n"
        "from importlib.metadata import distribution\n"
        "assert 'site' in ours.__file__, ours.__file__\n"
        "assert 'lightgaussian-tiny' in m.all_methods\n"
        "print(distribution('radcomp').version)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
