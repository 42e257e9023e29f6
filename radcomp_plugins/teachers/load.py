"""Find and read a trained teacher, whatever the user points at: a run, its config, a checkpoint or a splat file."""

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml
from torch import Tensor

from radcomp_plugins import compat
from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.registry import read_splats
from radcomp_plugins.splats.gaussians import SH_C0, Gaussians

CHECKPOINT_FOLDER = "nerfstudio_models"
SPLAT_KEYS = ("means", "quats", "scales", "opacities", "features_dc", "features_rest")
ACCEPTED = "a nerfstudio run folder, its config.yml, a .ckpt of it, or a splat file (.ply, .sog)"


@dataclass(frozen=True)
class TeacherFiles:
    """Where a teacher lies on disk.

    Attributes:
        source: the file the tensors are read from.
        config: config.yml of its run; None for a bare splat file, or a checkpoint without one.
    """

    source: Path
    config: Path | None


def latest_checkpoint(folder: Path) -> Path:
    """The checkpoint with the highest step in a run's checkpoint folder.

    Raises:
        InputError: the folder holds none.
    """
    found = sorted(folder.glob("step-*.ckpt"))
    if not found:
        raise InputError(f"{folder}: no checkpoint step-*.ckpt in it; expected a run that has saved one")
    return found[-1]


def find_teacher(path: Path) -> TeacherFiles:
    """Resolve what the user gave as teacher.

    Raises:
        InputError: nothing there is a teacher.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise InputError(f"teacher {path}: no such file or folder; expected {ACCEPTED}")
    if path.is_dir() and (path / "config.yml").exists():
        path = path / "config.yml"
    if path.is_dir() and (path / "meta.json").exists():
        return TeacherFiles(path, None)
    if path.suffix in (".yml", ".yaml"):
        return TeacherFiles(latest_checkpoint(path.parent / CHECKPOINT_FOLDER), path)
    if path.suffix == ".ckpt":
        config = path.parents[1] / "config.yml" if len(path.parents) > 1 else None
        return TeacherFiles(path, config if config is not None and config.exists() else None)
    if path.is_dir():
        raise InputError(f"teacher {path}: a folder without config.yml; expected {ACCEPTED}")
    return TeacherFiles(path, None)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors of a run's pipeline, on the CPU; nothing but tensors and numbers is unpickled.

    Raises:
        InputError: the file is no checkpoint of nerfstudio's trainer.
    """
    compat.apply()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return state["pipeline"]
    except (UnpicklingError, RuntimeError, KeyError, TypeError, EOFError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a readable nerfstudio checkpoint ({reason}); expected {ACCEPTED}") from error


def read_config(path: Path) -> Any:
    """The TrainerConfig of a run. Like every ns-* command this executes what the YAML names: open your own runs only.

    Raises:
        InputError: the file does not describe a nerfstudio run.
    """
    from nerfstudio.engine.trainer import TrainerConfig

    try:
        config = yaml.load(path.read_text(), Loader=yaml.Loader)
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, ImportError) as error:
        raise InputError(f"{path}: not a config.yml that this installation can read ({error!s:.200})") from error
    if not isinstance(config, TrainerConfig):
        raise InputError(f"{path}: holds a {type(config).__name__}, expected the TrainerConfig of a nerfstudio run")
    return compat.reroot(config, path)


def gaussians_from_state(state: dict[str, Tensor], source: Path, antialiased: bool = False) -> Gaussians:
    """The scene in the pipeline tensors of a splatfacto run, of any number of Gaussians and any SH degree.

    Raises:
        InputError: the model is not a splat model.
    """
    names = {name: f"_model.gauss_params.{name}" for name in SPLAT_KEYS}
    if names["means"] not in state and "_model.means" in state:
        names = {name: f"_model.{name}" for name in SPLAT_KEYS}
    missing = [name for name, key in names.items() if key not in state]
    if missing:
        modules = sorted({key.split(".")[1] for key in state if key.startswith("_model.") and "." in key[7:]})
        raise InputError(
            f"{source}: a model of {', '.join(modules) or 'unknown parts'} without Gaussians ({missing[0]} missing); "
            "expected a splatfacto run, or any splat file (.ply, .sog)"
        )
    tensors = {name: state[key].float() for name, key in names.items()}
    sh0, rest = tensors["features_dc"], tensors["features_rest"]
    if rest.shape[1] == 0 and "_model.sh_labels" not in state:
        # splatfacto with sh_degree 0 stores logits of the colour instead of SH.
        sh0 = (torch.sigmoid(sh0) - 0.5) / SH_C0
    labels = state.get("_model.sh_labels")
    if labels is not None and bool((labels >= 0).any()):
        coded = state["_model.codebook"][labels.clamp(min=0).long()].reshape(rest.shape)
        rest = torch.where((labels >= 0)[:, None, None], coded, rest)
    scene = Gaussians(
        means=tensors["means"],
        quats=tensors["quats"],
        scales=tensors["scales"],
        opacities=tensors["opacities"].reshape(-1),
        sh0=sh0,
        shN=rest,
        antialiased=antialiased,
    )
    return scene.select(scene.finite())


def load_splats(path: Path) -> Gaussians:
    """The Gaussians of a teacher, without its dataset and without building its model.

    Raises:
        InputError: there is no teacher at `path`, or it is no splat model, or it holds no Gaussian.
    """
    files = find_teacher(path)
    if files.source.suffix != ".ckpt":
        return read_splats(files.source)
    antialiased = False
    if files.config is not None:
        model = read_config(files.config).pipeline.model
        antialiased = getattr(model, "rasterize_mode", "classic") == "antialiased"
    scene = gaussians_from_state(read_checkpoint(files.source), files.source, antialiased)
    if len(scene) == 0:
        raise InputError(f"{files.source}: no finite Gaussian in it; expected at least one")
    return scene
