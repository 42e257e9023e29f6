"""Load a teacher of points from whatever was trained, on any device and without its dataset."""

from pathlib import Path
from typing import Any

import torch

from radcomp_plugins.errors import InputError
from radcomp_plugins.teachers.load import find_teacher, read_checkpoint, read_config
from radcomp_plugins.teachers.load_plain import SUFFIXES, load_plain_nerf
from radcomp_plugins.teachers.load_rays import build_model, model_state
from radcomp_plugins.teachers.points import FieldPointTeacher, PointTeacher
from radcomp_plugins.teachers.vanilla import VanillaNerfTeacher, samples_coarse_to_fine

ADVICE = "expected nerfacto and its family, vanilla-nerf, zipnerf-torch, or a plain NeRF checkpoint"


def load_point_teacher(path: Path, device: torch.device | str = "cpu") -> PointTeacher:
    """The teacher of points that was trained.

    Args:
        path: a run folder of nerfstudio, its config.yml, one of its checkpoints, or a plain NeRF checkpoint.
        device: where it answers.

    Raises:
        InputError: there is nothing, it cannot be loaded here, or its model answers no point queries.
    """
    files = find_teacher(path)
    if files.config is None and files.source.suffix in SUFFIXES:
        return load_plain_nerf(files.source).to(device)
    if files.source.suffix != ".ckpt":
        raise _no_points(files.source, "splat")
    state = model_state(read_checkpoint(files.source), files.source)
    assert files.config is not None
    model = build_model(read_config(files.config).pipeline.model, state, files.source)
    return point_teacher_of(model, files.source).to(device)


def point_teacher_of(model: Any, source: Path) -> PointTeacher:
    """The adapter for a model.

    Raises:
        InputError: there is none for its class.
    """
    if type(model).__module__ == "radcomp_plugins.teachers.zipnerf.model":
        from radcomp_plugins.teachers.zipnerf.points import ZipNerfPointTeacher

        return ZipNerfPointTeacher(model)
    if samples_coarse_to_fine(model) and not model.field_fine.use_integrated_encoding:
        return VanillaNerfTeacher(model)
    field = getattr(model, "field", None)
    answers = all(hasattr(field, name) for name in ("get_density", "get_outputs"))
    # Fields of cones (mip-NeRF) answer for volumes, and those of moving scenes for a time as well.
    wider = getattr(field, "use_integrated_encoding", False) or getattr(model, "temporal_distortion", None) is not None
    if not answers or wider or not hasattr(model, "renderer_rgb"):
        raise _no_points(source, type(model).__name__)
    return FieldPointTeacher(model, field)


def _no_points(source: Path, kind: str) -> InputError:
    return InputError(f"{source}: {kind} models answer no point queries; {ADVICE}")
