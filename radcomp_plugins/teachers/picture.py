"""Pictures by a teacher of rays."""

from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor


def teacher_picture(teacher: Any, bundle: RayBundle) -> Tensor:
    """The colours [N, 3] that a `RayTeacher` gives to rays, on its own background."""
    flat, parts = bundle.flatten(), []
    for begin in range(0, len(flat), 8192):
        taught = teacher.query_rays(flat[begin : begin + 8192])
        behind = (1.0 - taught.weights.sum(dim=-1, keepdim=True)).clamp(min=0.0)
        parts.append((taught.rgb + behind * teacher.background.to(taught.rgb)).clamp(0.0, 1.0))
    return torch.cat(parts)
