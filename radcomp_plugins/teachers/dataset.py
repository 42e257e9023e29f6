"""The dataset of a run: a teacher's, for students that are given no other, and the frame it was read into."""

from pathlib import Path
from typing import Any

import numpy as np

from radcomp_plugins.core.files import read_json
from radcomp_plugins.errors import InputError
from radcomp_plugins.teachers.load import find_teacher, read_config


def required_teacher(config: Any, method: str) -> Path:
    """The teacher's path in a pipeline config.

    Raises:
        InputError: there is none.
    """
    if config.teacher is None:
        raise InputError(f"{method}: no teacher; give one with --pipeline.teacher RUN_FOLDER")
    return config.teacher


def adopt_dataset(config: Any, method: str) -> None:
    """Without --data, train on the dataset of the teacher's run, read by the same dataset parser.

    Args:
        config: a pipeline config with a field `teacher`; its datamanager is changed in place.
        method: name for messages.

    Raises:
        InputError: there is no teacher, or it is a bare file, which knows no dataset.
    """
    teacher = find_teacher(required_teacher(config, method))
    manager: Any = config.datamanager
    # The parsers' default is the working directory, written "." or, once a config was saved, in full.
    if manager.data is not None or manager.dataparser.data not in (Path(), Path.cwd()):
        return
    if teacher.config is None:
        raise InputError(f"teacher {teacher.source}: knows no dataset; give one with --data DATASET")
    theirs = read_config(teacher.config).pipeline.datamanager
    manager.dataparser = theirs.dataparser
    manager.data = theirs.data or theirs.dataparser.data


def dataset_frame(run: Path) -> tuple[dict[str, Any], Path | None]:
    """How the scene's frame comes from the dataset's own: x_scene = scale * (transform @ [x_dataset, 1])."""
    path = run / "dataparser_transforms.json"
    if not path.exists():
        return {"transform": np.eye(4)[:3].tolist(), "scale": 1.0}, None
    stored = read_json(path)
    return {"transform": stored["transform"], "scale": stored["scale"]}, path
