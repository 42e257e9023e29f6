"""Pictures by a teacher of rays."""

import torch
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from radcomp_plugins.teachers.rays import RayTeacher


def teacher_picture(teacher: RayTeacher, bundle: RayBundle) -> Tensor:
    """The teacher's colours [N, 3] of rays, on its own background."""
    flat, parts = bundle.flatten(), []
    for begin in range(0, len(flat), 8192):
        taught = teacher.query_rays(flat[begin : begin + 8192])
        behind = (1.0 - taught.weights.sum(dim=-1, keepdim=True)).clamp(min=0.0)
        parts.append((taught.rgb + behind * teacher.background.to(taught.rgb)).clamp(0.0, 1.0))
    return torch.cat(parts)
