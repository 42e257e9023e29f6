"""`radcomp info`: what this machine has, or what a file or asset folder holds."""

import json
import platform
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import tyro

PACKAGES = ("radcomp", "nerfstudio", "gsplat", "torch", "numpy", "numba")


@dataclass
class Info:
    """Show versions, device and missing system libraries; or, for a splat file, run or asset folder, what is in it.

    A baked scene is checked file by file; where something is wrong, the problems are shown and the exit code is 1.
    """

    path: Annotated[Path | None, tyro.conf.Positional] = None
    """A splat file (.ply, .sog), a .vqad file, an asset folder (a baked scene too), or a splat run.
    None describes this machine."""
    json: bool = False
    """Print JSON instead of a table."""

    def main(self) -> None:
        """Collect, and print."""
        if self.path is None:
            self._show(machine_facts())
            return
        from radcomp_plugins.kilonerf.asset_file import describe as describe_kilonerf
        from radcomp_plugins.kilonerf.asset_file import is_kilonerf
        from radcomp_plugins.smerf.formats.validate import describe, is_baked_scene, validate
        from radcomp_plugins.vqad.info import describe as describe_vqad
        from radcomp_plugins.vqad.info import is_vqad

        if is_kilonerf(self.path):
            self._show(describe_kilonerf(self.path))
            return
        if is_vqad(self.path):
            self._show(describe_vqad(self.path))
            return
        if not is_baked_scene(self.path):
            self._show(scene_facts(self.path))
            return
        problems = validate(self.path)
        if problems:
            shown = [asdict(problem) for problem in problems] if self.json else [str(problem) for problem in problems]
            self._show({"path": str(self.path), "problems": shown})
            sys.exit(1)
        self._show(describe(self.path))

    def _show(self, facts: dict[str, Any]) -> None:
        """Print facts, one on a line."""
        if self.json:
            sys.stdout.write(json.dumps({"schema_version": 1, **facts}, indent=2) + "\n")
            return
        from nerfstudio.utils.rich_utils import CONSOLE

        width = max(len(name) for name in facts) + 2
        for name, value in facts.items():
            lines = value if isinstance(value, list) else [f"{value:,}" if isinstance(value, int) else str(value)]
            for line, shown in enumerate(lines):
                label = "" if line else name
                CONSOLE.print(f"{label:<{width}}{shown}", soft_wrap=True, highlight=False, markup=False)


def machine_facts() -> dict[str, Any]:
    """Versions, the device that training would use, and what ns-export lacks."""
    import torch

    from radcomp_plugins import compat

    facts: dict[str, Any] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "not installed"
    cuda = torch.cuda.is_available()
    facts["device"] = torch.cuda.get_device_name(0) if cuda else f"cpu, {torch.get_num_threads()} threads"
    missing = compat.missing_open3d_libraries()
    if missing:
        facts["ns-export"] = (
            f"cannot start: open3d needs {' and '.join(missing)}; on Debian or Ubuntu, "
            f"apt install {compat.OPEN3D_PACKAGES} (radcomp export works without)"
        )
    return facts


def scene_facts(path: Path) -> dict[str, Any]:
    """Counts and bytes of a scene; for an asset folder its manifest's as well.

    Raises:
        InputError: nothing that can be read is at `path`.
    """
    from radcomp_plugins.core.files import MANIFEST_NAME, read_manifest
    from radcomp_plugins.teachers.load import find_teacher, load_splats

    facts: dict[str, Any] = {"path": str(path)}
    if (path / MANIFEST_NAME).is_file():
        manifest = read_manifest(path)
        facts.update({"format": manifest.get("format"), "version": manifest.get("version")})
        facts.update({name: entry["bytes"] for name, entry in manifest["files"].items()})
        scenes = {name: entry["bytes"] for name, entry in manifest["files"].items() if name.startswith("scene.")}
        path = path / min(scenes, key=lambda name: scenes[name]) if scenes else path
    scene = load_splats(path)
    source = find_teacher(path).source
    files = [source] if source.is_file() else [file for file in source.iterdir() if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    low, high = scene.means.amin(0).tolist(), scene.means.amax(0).tolist()
    return facts | {
        "gaussians": len(scene),
        "sh degree": scene.sh_degree,
        "bytes": size,
        "bytes per gaussian": f"{size / len(scene):.2f}",
        "bounds": " ".join(f"{a:.3g}..{b:.3g}" for a, b in zip(low, high, strict=True)),
    }
