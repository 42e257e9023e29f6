"""Read plain NeRF checkpoints: `.npz`, or state dicts of coarse and fine networks that torch has saved."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from radcomp_plugins import compat
from radcomp_plugins.errors import InputError
from radcomp_plugins.teachers.load import DAMAGED
from radcomp_plugins.teachers.plain_nerf import PlainMlp, PlainNerfTeacher

SUFFIXES = (".npz", ".tar", ".pth", ".pt", ".ckpt")
MAX_BYTES = 2**30
"""Largest checkpoint that is read: one network of 8 x 256 has 2.4 MB, with its optimiser 7."""

_PAIRS = (
    ("network_fn_state_dict", "network_fine_state_dict"),
    ("model_coarse_state_dict", "model_fine_state_dict"),
    ("coarse", "fine"),
)
"""Where code bases keep their two networks."""
_PREFIXES = (("coarse.", "fine."), ("nerf_coarse.", "nerf_fine."), ("model_coarse.", "model_fine."))
"""What their names begin with where both are in one dictionary."""
_WANTED = "expected a plain NeRF checkpoint with a coarse and a fine network (.npz, or .tar, .pth, .ckpt of torch)"


def load_plain_nerf(path: Path) -> PlainNerfTeacher:
    """The teacher in a file; nothing but tensors and numbers is unpickled.

    Raises:
        InputError: the file is damaged, too large, or holds no network of a known family.
    """
    path = Path(path)
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: {path.stat().st_size} bytes, expected at most {MAX_BYTES} for a plain NeRF")
    state = _read_npz(path) if path.suffix == ".npz" else _read_torch(path)
    coarse, fine = _networks(state, path)
    return PlainNerfTeacher(PlainMlp(coarse, f"{path} (coarse)"), PlainMlp(fine, f"{path} (fine)"))


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_BYTES:
            raise InputError(f"{path}: unpacks to {size} bytes, expected at most {MAX_BYTES} for a plain NeRF")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}
    except (zipfile.BadZipFile, zipfile.LargeZipFile, ValueError, OSError, EOFError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        reason = f"{type(error).__name__} {error}".splitlines()[0][:120]
        raise InputError(f"{path}: not a readable .npz ({reason}); {_WANTED}") from error


def _read_torch(path: Path) -> Any:
    compat.apply()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        reason = f"{type(error).__name__} {error}".splitlines()[0][:120]
        raise InputError(f"{path}: not readable without running its code ({reason}); {_WANTED}") from error
    return state.get("state_dict", state) if isinstance(state, dict) else state


def _networks(state: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The two networks' tensors; a file with one network has it for both."""
    if not isinstance(state, dict):
        raise InputError(f"{path}: holds a {type(state).__name__}; {_WANTED}")
    for first, second in _PAIRS:
        if isinstance(state.get(first), dict):
            other = state.get(second)
            return _tensors(state[first]), _tensors(other if isinstance(other, dict) else state[first])
    for prefixes in _PREFIXES:
        named = {key: value for key, value in state.items() if isinstance(key, str)}
        first, second = (
            {key[len(prefix) :]: value for key, value in named.items() if key.startswith(prefix)} for prefix in prefixes
        )
        if first or second:
            return _tensors(first or second), _tensors(second or first)
    tensors = _tensors(state)
    if not tensors:
        raise InputError(f"{path}: holds {', '.join(map(str, list(state)[:4])) or 'nothing'}; {_WANTED}")
    return tensors, tensors


def _tensors(state: dict[Any, Any]) -> dict[str, Tensor]:
    found = {str(key).removeprefix("module."): value for key, value in state.items() if torch.is_tensor(value)}
    return {key: value for key, value in found.items() if value.layout == torch.strided and not value.is_complex()}
