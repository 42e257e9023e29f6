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

# What torch.load raises for a file that is cut off, altered, of another kind, or would run code.
DAMAGED = (
    UnpicklingError,
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    EOFError,
    OSError,
    AssertionError,
    MemoryError,
)


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
        state = torch.load(path, map_location="cpu", weights_only=True)["pipeline"]
    except DAMAGED as error:
        reason = f"{type(error).__name__} {error}".splitlines()[0][:120]
        raise InputError(f"{path}: not a readable nerfstudio checkpoint ({reason}); expected {ACCEPTED}") from error
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise InputError(f"{path}: its pipeline is a {type(state).__name__}, expected tensors by name")
    return state


def read_config(path: Path) -> Any:
    """The TrainerConfig of a run. Like every ns-* command this executes what the YAML names: open your own runs only.

    Raises:
        InputError: the file does not describe a nerfstudio run.
    """
    from nerfstudio.engine.trainer import TrainerConfig

    try:
        config = yaml.load(path.read_text(), Loader=yaml.Loader)
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a config.yml that this installation can read ({reason})") from error
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
    if "_model.asset" in state:
        raise InputError(
            f"{source}: the run beside an exported asset; expected the asset itself, its scene.sog or .ply"
        )
    missing = [name for name, key in names.items() if key not in state]
    if missing:
        modules = sorted({key.split(".")[1] for key in state if key.startswith("_model.") and "." in key[7:]})
        raise InputError(
            f"{source}: a model of {', '.join(modules) or 'unknown parts'} without Gaussians ({missing[0]} missing); "
            "expected a splatfacto run, or any splat file (.ply, .sog)"
        )
    tensors = {name: _checked(state[key], name, source).float() for name, key in names.items()}
    sh0, rest = tensors["features_dc"], tensors["features_rest"]
    _check_sizes(tensors, source)
    if rest.shape[1] == 0 and "_model.sh_labels" not in state:
        # splatfacto with sh_degree 0 stores logits of the colour instead of SH.
        sh0 = (torch.sigmoid(sh0) - 0.5) / SH_C0
    if "_model.sh_labels" in state:
        rest = _with_codes(rest, state["_model.sh_labels"], state.get("_model.codebook"), source)
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


def _checked(value: Any, name: str, source: Path) -> Tensor:
    if not torch.is_tensor(value) or value.layout != torch.strided or value.is_complex():
        raise InputError(f"{source}: {name} is a {type(value).__name__}, expected a tensor of real numbers")
    return value


def _check_sizes(tensors: dict[str, Tensor], source: Path) -> None:
    count = len(tensors["means"]) if tensors["means"].ndim else 0
    rest = tensors["features_rest"]
    bands = rest.shape[1] if rest.ndim == 3 and rest.shape[1] in (0, 3, 8, 15) else 15
    expected = {
        "means": (count, 3),
        "quats": (count, 4),
        "scales": (count, 3),
        "opacities": (count, 1),
        "features_dc": (count, 3),
        "features_rest": (count, bands, 3),
    }
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise InputError(f"{source}: {name} has shape {tuple(tensors[name].shape)}, expected {shape}")


def _with_codes(rest: Tensor, labels: Any, codebook: Any, source: Path) -> Tensor:
    """SH [N, K, 3] with the codebook's entries [C, 3 K] where a label [N] names one."""
    labels = _checked(labels, "sh_labels", source)
    integral = not labels.is_floating_point() and labels.dtype != torch.bool
    if labels.shape != rest.shape[:1] or not integral:
        raise InputError(
            f"{source}: sh_labels is {labels.dtype} of shape {tuple(labels.shape)}, expected {len(rest)} whole numbers"
        )
    if not bool((labels >= 0).any()):
        return rest
    codebook = _checked(codebook, "codebook", source).float()
    if codebook.ndim != 2 or codebook.shape[1] != rest[0].numel() or int(labels.max()) >= len(codebook):
        raise InputError(
            f"{source}: codebook of shape {tuple(codebook.shape)}, expected ({int(labels.max()) + 1} or more, "
            f"{rest[0].numel()})"
        )
    coded = codebook[labels.clamp(min=0).long()].reshape(rest.shape)
    return torch.where((labels >= 0)[:, None, None], coded, rest)


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
