"""Load a teacher of rays from its run, on any device and without its dataset."""

from pathlib import Path
from typing import Any

import torch
from nerfstudio.data.scene_box import SceneBox
from torch import Tensor, nn

from radcomp_plugins import compat
from radcomp_plugins.errors import InputError
from radcomp_plugins.teachers.hash_encoding import use_cpu_twin
from radcomp_plugins.teachers.load import find_teacher, read_checkpoint, read_config
from radcomp_plugins.teachers.nerfacto import NerfactoTeacher, samples_by_proposals
from radcomp_plugins.teachers.rays import RayTeacher
from radcomp_plugins.teachers.vanilla import VanillaNerfTeacher, samples_coarse_to_fine
from radcomp_plugins.teachers.zipnerf_plugin import ZipNerfPluginTeacher, is_plugin_model

ADVICE = "train a nerfacto-tiny or zipnerf-torch run on its data and give that"

_MODEL = "_model."
_BOXES = ("field.aabb", "box")
"""Where models keep the box of their scene, [2, 3]."""
_PER_IMAGE = ("field.embedding_appearance.embedding.weight", "camera_optimizer.pose_adjustment", "appearance.weight")
"""Where models keep one row for each training image."""

# What building a model raises where a library, a CUDA extension or a device is missing, or its settings contradict.
_CANNOT_BUILD = (ImportError, OSError, RuntimeError, AssertionError, AttributeError, ValueError, TypeError, KeyError)


def load_ray_teacher(path: Path, device: torch.device | str = "cpu") -> RayTeacher:
    """The teacher of rays that a nerfstudio run trained.

    Args:
        path: a run folder, its config.yml, or one of its checkpoints.
        device: where it answers.

    Raises:
        InputError: there is no run, it cannot be loaded here, or its model answers no ray queries.
    """
    files = find_teacher(path)
    if files.source.suffix != ".ckpt":
        raise _no_rays(files.source, "splat")
    state = model_state(read_checkpoint(files.source), files.source)
    if files.config is None:
        raise InputError(f"{files.source}: no config.yml beside its folder; expected a checkpoint inside its run")
    config = read_config(files.config).pipeline.model
    model = build_model(config, state, files.source)
    teacher = teacher_of(model, files.source)
    return teacher.to(device)


def model_state(state: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """The model's tensors in those of a pipeline, under the model's own names.

    Raises:
        InputError: there are none, or they are those of Gaussians.
    """
    # A run on several GPUs is saved by nerfstudio without the wrapper's prefix, but older ones were not.
    state = {key.replace("_model.module.", _MODEL, 1): value for key, value in state.items()}
    found = {key[len(_MODEL) :]: value for key, value in state.items() if key.startswith(_MODEL)}
    if not found:
        raise InputError(f"{source}: holds no model; expected a checkpoint of a nerfstudio run")
    if any(key.startswith("gauss_params.") for key in found) or {"means", "quats"} <= set(found):
        raise _no_rays(source, "splat")
    return compat.without_lpips(found)


def build_model(config: Any, state: dict[str, Tensor], source: Path) -> nn.Module:
    """The model of a config with the tensors of a checkpoint, on the CPU, its hash encodings as numba kernels.

    Args:
        config: a nerfstudio model config; its `implementation` is set to what the checkpoint was trained with.
        state: by the model's own names.
        source: the checkpoint, for messages.

    Raises:
        InputError: the checkpoint needs a library that is not here, the model cannot be built, or they do not fit.
    """
    _choose_implementation(config, state, source)
    name = type(config).__name__
    try:
        with compat.lazy_lpips():
            model = config.setup(
                scene_box=SceneBox(aabb=_scene_box(state)),
                num_train_data=_num_images(state),
                metadata={},
                device="cpu",
                grad_scaler=None,
            )
    except _CANNOT_BUILD as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        raise InputError(f"{source}: its model ({name}) cannot be built here ({reason}); {ADVICE}") from error
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{source}: does not fit the config.yml of its run ({reason})") from error
    use_cpu_twin(model)
    return model


def teacher_of(model: nn.Module, source: Path) -> RayTeacher:
    """The adapter for a model.

    Raises:
        InputError: there is none for its class.
    """
    if is_plugin_model(model):
        return ZipNerfPluginTeacher(model)
    if type(model).__module__ == "radcomp_plugins.teachers.zipnerf.model":
        from radcomp_plugins.teachers.zipnerf.teacher import ZipNerfTeacher

        return ZipNerfTeacher(model)  # type: ignore[arg-type]  # of the one class in that module
    if samples_coarse_to_fine(model):
        return VanillaNerfTeacher(model)
    if samples_by_proposals(model):
        return NerfactoTeacher(model)
    raise _no_rays(source, type(model).__name__)


def _no_rays(source: Path, kind: str) -> InputError:
    return InputError(f"{source}: {kind} models answer no ray queries; {ADVICE}")


def _choose_implementation(config: Any, state: dict[str, Tensor], source: Path) -> None:
    """Tell by the names of its tensors whether a checkpoint was trained with tiny-cuda-nn, which fuses them."""
    from nerfstudio.utils.external import TCNN_EXISTS

    if not hasattr(config, "implementation"):
        return
    fused = any(key.endswith(("tcnn_encoding.params", "model.params")) for key in state)
    if fused and not TCNN_EXISTS:
        raise InputError(
            f"{source}: trained with tiny-cuda-nn, which is not installed here; install it, or train the teacher with "
            "--pipeline.model.implementation torch, or as nerfacto-tiny"
        )
    config.implementation = "tcnn" if fused else "torch"


def _scene_box(state: dict[str, Tensor]) -> Tensor:
    """The dataset's box; the unit cube where the model does not keep it, because then it does not use it."""
    for name in _BOXES:
        box = state.get(name)
        if torch.is_tensor(box) and box.shape == (2, 3):
            return box.float().clone()
    return torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])


def _num_images(state: dict[str, Tensor]) -> int:
    """Number of training images; 1 where nothing depends on it."""
    rows = [len(state[name]) for name in _PER_IMAGE if torch.is_tensor(state.get(name)) and state[name].ndim == 2]
    return rows[0] if rows else 1
