"""Where the scene is: a box around what the teacher shows to the training cameras, or around SfM points.

A grid of cells needs a box, and a dataset seldom has one. The teacher's density alone does not tell: it is anything
where no camera has looked. So rays of the training cameras ask it, and the box is put around what sends light.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from radcomp_plugins.errors import InputError
from radcomp_plugins.teachers.points import PointTeacher

SAMPLES = 128
"""Samples of a ray up to twice the cameras' distance, or within the box."""
FAR_SAMPLES = 32
"""Further ones, ever farther apart, up to `FAR` times that distance: what is seen there belongs to no object."""
FAR = 50.0
CORE_LOST = 5e-3
"""Share of the light beyond each side of a first box: floaters are left out, and thin ends of the scene as well."""
CORE_ROOM = 0.5
"""Share of its sides that this box grows by on each of them before it is looked at closely."""
BLOCKS = 32
"""Blocks along the longest side of the grown box, in which light is gathered to tell the scene from floaters."""
FLOATER = 0.01
"""Share of the light below which what is apart from the rest is a floater."""
SEEN = 0.02
"""Weight of a sample in its ray from which it belongs to the scene."""
MARGIN = 0.02
"""Share of the longest side that is added all around."""
UNBOUNDED = 0.25
"""Share of the light from beyond the cameras from which a scene counts as unbounded."""
FEW = 0.02
"""Share of the light outside of a given box that is worth a warning."""
_POINTS_LOST = 0.01
_POINTS_MARGIN = 0.1


@dataclass(frozen=True)
class Sight:
    """What rays see, sample by sample.

    Attributes:
        points: scene frame.
        weights: share of its ray's light that each sample sends.
        beyond: whether it lies farther from the scene's middle than the cameras do.
    """

    points: Float[Tensor, "M 3"]
    weights: Float[Tensor, " M"]
    beyond: Tensor

    def share(self, chosen: Tensor) -> float:
        """Of all light, how much comes from some of the samples; 0 where there is none."""
        total = float(self.weights.sum())
        return float(self.weights[chosen].sum()) / total if total > 0 else 0.0


def focus_of(rays: RayBundle) -> tuple[Float[Tensor, " 3"], float]:
    """The point nearest to all rays, in the sense of least squares, and how far from it the farthest one begins.

    Between rays that are all parallel it is drawn to where they begin.
    """
    origins, directions = rays.origins.double(), rays.directions.double()
    across = torch.eye(3, dtype=torch.float64, device=origins.device) - directions[:, :, None] * directions[:, None]
    middle = origins.mean(dim=0)
    matrix = across.mean(dim=0) + 1e-4 * torch.eye(3, dtype=torch.float64, device=origins.device)
    shift = torch.linalg.solve(matrix, (across @ (origins - middle)[..., None]).mean(dim=0)[:, 0])
    focus = middle + shift
    radius = float((origins - focus).norm(dim=-1).max())
    return focus.float(), max(radius, 1e-6)


@torch.no_grad()
def look(teacher: PointTeacher, rays: RayBundle, near: float) -> Sight:
    """Ask a teacher about all that rays pass, from `near` on, near and far."""
    focus, radius = focus_of(rays)
    device = rays.origins.device
    close = torch.linspace(near, 2.0 * radius, SAMPLES + 1, device=device)
    distant = 2.0 * radius * FAR ** torch.linspace(0.0, 1.0, FAR_SAMPLES + 1, device=device)[1:]
    edges = torch.cat([close, distant]).expand(len(rays), -1)
    points, weights = _weigh(teacher, rays, edges)
    beyond = (points - focus).norm(dim=-1) > max(radius, near)
    return Sight(points.flatten(0, 1), weights.flatten(), beyond.flatten())


@torch.no_grad()
def look_into(teacher: PointTeacher, rays: RayBundle, box: Float[NDArray[np.float64], "2 3"], near: float) -> Sight:
    """Ask a teacher about what rays pass within a box, all samples there."""
    corners = torch.from_numpy(box).to(rays.origins)
    slope = rays.directions.sign() * rays.directions.abs().clamp(min=1e-9)
    slope = torch.where(slope == 0, 1e-9, slope)
    first, second = (corners[0] - rays.origins) / slope, (corners[1] - rays.origins) / slope
    start = torch.minimum(first, second).amax(dim=-1).clamp(min=near)
    end = torch.maximum(first, second).amin(dim=-1)
    hit = end > start
    if not bool(hit.any()):
        return Sight(rays.origins[:0], rays.origins[:0, 0], hit[:0])
    share = torch.linspace(0.0, 1.0, SAMPLES + 1, device=rays.origins.device)
    edges = start[hit, None] + share * (end - start)[hit, None]
    points, weights = _weigh(teacher, rays[hit], edges)
    return Sight(points.flatten(0, 1), weights.flatten(), torch.zeros_like(weights.flatten(), dtype=torch.bool))


def _weigh(teacher: PointTeacher, rays: RayBundle, edges: Float[Tensor, "R edges"]) -> tuple[Tensor, Tensor]:
    middle = 0.5 * (edges[:, 1:] + edges[:, :-1])
    points = rays.origins[:, None] + middle[..., None] * rays.directions[:, None]
    directions = rays.directions[:, None].expand_as(points)
    density = teacher.query_points(points.reshape(-1, 3), directions.reshape(-1, 3)).density.view(middle.shape)
    depth = density * edges.diff(dim=-1)
    return points, torch.exp(-(depth.cumsum(dim=-1) - depth)) * -torch.expm1(-depth)


def box_of_light(sight: Sight, lost: float = CORE_LOST) -> Float[NDArray[np.float64], "2 3"]:
    """The box beyond each of whose sides a share `lost` of the light comes from."""
    box = np.empty((2, 3))
    for axis in range(3):
        order = sight.points[:, axis].argsort()
        place = sight.points[order, axis]
        summed = sight.weights[order].double().cumsum(dim=0)
        summed = summed / summed[-1]
        first = int((summed <= lost).sum().clamp(max=len(place) - 1))
        last = int((summed < 1.0 - lost).sum().clamp(max=len(place) - 1))
        box[:, axis] = float(place[first]), float(place[last])
    return box


def box_without_floaters(sight: Sight, room: Float[NDArray[np.float64], "2 3"]) -> Float[NDArray[np.float64], "2 3"]:
    """The box around all that is seen within `room`, but for what is small and apart from the rest.

    A share of the light cannot tell a floater from the tip of a chair's leg: the leg hangs together with the chair.
    """
    chosen = sight.weights > SEEN
    points, light = sight.points[chosen].double().cpu().numpy(), sight.weights[chosen].double().cpu().numpy()
    if len(points) == 0:
        return room
    side = (room[1] - room[0]).max() / BLOCKS
    block = np.floor((points - room[0]) / side).astype(int).clip(0, BLOCKS)
    gathered = np.zeros((BLOCKS + 1,) * 3)
    np.add.at(gathered, tuple(block.T), light)
    # Rays leave gaps: blocks hang together when they touch once all of them have grown by one.
    near = ndimage.binary_dilation(gathered > 0, np.ones((3, 3, 3)))
    parts, count = ndimage.label(near, np.ones((3, 3, 3)))  # type: ignore[misc]  # of two results
    share = ndimage.sum_labels(gathered, parts, np.arange(count + 1)) / gathered.sum()
    kept = points[share[parts[tuple(block.T)]] >= min(FLOATER, share.max())]
    return np.stack([kept.min(axis=0), kept.max(axis=0)])


def grown(box: Float[NDArray[np.float64], "2 3"], margin: float) -> Float[NDArray[np.float64], "2 3"]:
    """A box with so much more on all sides, scene units."""
    return np.stack([box[0] - margin, box[1] + margin])


def find_box(teacher: PointTeacher, rays: RayBundle, near: float) -> Float[NDArray[np.float64], "2 3"]:
    """The box around what the teacher shows to rays of the training cameras.

    Args:
        teacher: whom to ask.
        rays: of the training cameras.
        near: distance at which they begin, scene units.

    Raises:
        InputError: the teacher shows nothing, or a scene without bounds.
    """
    sight = look(teacher, rays, near)
    if float(sight.weights.sum()) < 1e-3 * len(rays):
        raise InputError(
            "teacher: shows nothing to the training cameras; expected one of this dataset, in the same frame (dataset "
            "parser settings: scale, orientation, centre)"
        )
    far = sight.share(sight.beyond)
    if far > UNBOUNDED:
        raise InputError(
            f"teacher: {far:.0%} of the light comes from beyond the cameras, an unbounded scene, which no grid "
            "of cells holds; crop it with --pipeline.model.box x0 y0 z0 x1 y1 z1, or distil it with smerf"
        )
    _, radius = focus_of(rays)
    near_only = Sight(sight.points[~sight.beyond], sight.weights[~sight.beyond], sight.beyond[~sight.beyond])
    core = box_of_light(near_only)
    room = CORE_ROOM * (core[1] - core[0]) + 2.0 * radius / SAMPLES
    first = np.stack([core[0] - room, core[1] + room])
    box = box_without_floaters(look_into(teacher, rays, first, near), first)
    return grown(box, max(MARGIN * float((box[1] - box[0]).max()), 1e-6))


def box_of_points(points: Float[Tensor, "P 3"] | None) -> Float[NDArray[np.float64], "2 3"]:
    """The box around SfM points, but for the outermost of them, with room around it.

    Raises:
        InputError: there are fewer than ten.
    """
    if points is None or len(points) < 10:
        count = 0 if points is None else len(points)
        raise InputError(
            f"dataset: {count} SfM points, expected 10 or more for --pipeline.model.box-from points; take density"
        )
    place = points.double().cpu().numpy()
    box = np.quantile(place, [_POINTS_LOST, 1.0 - _POINTS_LOST], axis=0)
    return grown(box, float(max(_POINTS_MARGIN * (box[1] - box[0]).max(), 1e-6)))


def given_box(numbers: tuple[float, ...]) -> Float[NDArray[np.float64], "2 3"]:
    """A box from its six numbers.

    Raises:
        InputError: it is empty, inverted or not finite.
    """
    box = np.array(numbers, np.float64).reshape(2, 3)
    if not np.isfinite(box).all() or not (box[0] < box[1]).all():
        raise InputError(
            f"--pipeline.model.box: lower corner {box[0].tolist()}, upper {box[1].tolist()}; expected the lower one "
            "below the upper on every axis"
        )
    return box


def check_box(
    box: Float[NDArray[np.float64], "2 3"], teacher: PointTeacher, rays: RayBundle, near: float
) -> float:  # fmt: skip
    """Share of the light that comes from outside of a box.

    Raises:
        InputError: all of it does.
    """
    sight = look(teacher, rays, near)
    corners = torch.from_numpy(box).to(sight.points)
    outside = ~((sight.points >= corners[0]) & (sight.points <= corners[1])).all(dim=-1)
    share = sight.share(outside)
    if share > 0.999 or float(sight.weights.sum()) == 0.0:
        raise InputError(
            f"box {box.round(4).tolist()}: nothing of what the teacher shows lies in it; expected the scene's place in "
            "the scene frame (found where no box is given)"
        )
    return share
