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
    """A splat file of any format, a .vqad file, an asset folder (a baked scene too), or a splat run.
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
            facts = scene_facts(self.path)
            self._show(facts if self.json else readable(facts))
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
            counts = isinstance(value, int) and not isinstance(value, bool)
            lines = value if isinstance(value, list) else [f"{value:,}" if counts else str(value)]
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
    """Counts, bytes and ranges of a splat file, or of a run; for an asset folder its manifest's as well.

    Raises:
        InputError: nothing that can be read is at `path`.
    """
    from radcomp_plugins.core.files import MANIFEST_NAME, read_manifest
    from radcomp_plugins.splats.info import describe_file, describe_scene
    from radcomp_plugins.teachers.load import find_teacher, load_splats

    facts: dict[str, Any] = {"path": str(path)}
    if (path / MANIFEST_NAME).is_file():
        manifest = read_manifest(path)
        facts.update({"format": manifest.get("format"), "version": manifest.get("version")})
        facts.update({name: entry["bytes"] for name, entry in manifest["files"].items()})
        scenes = {name: entry["bytes"] for name, entry in manifest["files"].items() if name.startswith("scene.")}
        path = path / min(scenes, key=lambda name: scenes[name]) if scenes else path
    source = find_teacher(path).source
    if source.suffix != ".ckpt":
        return facts | describe_file(source)
    scene, size = load_splats(path), source.stat().st_size
    return facts | describe_scene(scene) | {"bytes": size, "bytes per gaussian": f"{size / len(scene):.2f}"}


def readable(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts of a scene with tables and ranges as lines of text."""
    shown = dict(facts)
    for name in ("scales", "opacities"):
        shown[name] = "{least:g} to {greatest:g}, median {median:g}".format(**facts[name])
    if "attributes" in facts:
        width = max(len(name) for name in facts["attributes"])
        shown["attributes"] = [
            f"{name:<{width}} {row['bytes']:>12,} bytes {100 * row['bytes'] / facts['bytes']:5.1f} % "
            f"{row['bits per gaussian']:8.2f} bits per Gaussian"
            for name, row in facts["attributes"].items()
        ]
        width = max(len(part["name"]) for part in facts["parts"])
        shown["parts"] = [
            f"{part['name']:<{width}} {part['bytes']:>12,} bytes"
            + (f", {part['unpacked']:,} unpacked" if "unpacked" in part else "")
            + f", {part['attribute']}"
            for part in facts["parts"]
        ]
    return shown
