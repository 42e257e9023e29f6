"""`radcomp info`: what this machine has, or what a file or asset folder holds."""

import json
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import tyro

PACKAGES = ("radcomp", "nerfstudio", "gsplat", "torch", "numpy", "numba")


@dataclass
class Info:
    """Show versions, device and missing system libraries; or, for a splat file, run or asset folder, what is in it."""

    path: Annotated[Path | None, tyro.conf.Positional] = None
    """A splat file (.ply, .sog), an asset folder, or a splat run. None describes this machine."""
    json: bool = False
    """Print JSON instead of a table."""

    def main(self) -> None:
        """Collect, and print."""
        facts = machine_facts() if self.path is None else scene_facts(self.path)
        if self.json:
            sys.stdout.write(json.dumps({"schema_version": 1, **facts}, indent=2) + "\n")
            return
        from nerfstudio.utils.rich_utils import CONSOLE

        width = max(len(name) for name in facts) + 2
        for name, value in facts.items():
            shown = f"{value:,}" if isinstance(value, int) else str(value)
            CONSOLE.print(f"{name:<{width}}{shown}", soft_wrap=True, highlight=False, markup=False)


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
