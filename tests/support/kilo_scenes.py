"""Small KiloNeRF scenes for tests: random networks in the shell of a ball, some cells empty."""

import numpy as np
import torch
from numpy.typing import NDArray

from radcomp_plugins.kilonerf.grid import cells_of_box, grid_of_occupancy
from radcomp_plugins.kilonerf.networks import TinyNetworks
from radcomp_plugins.kilonerf.scene import KiloGrid, KiloScene, NetworkShape

BOX = np.array([[-1.0, -0.8, -0.55], [1.0, 0.9, 0.6]])


def shell_grid(longest: int = 4, voxels: int = 4, step: float = 0.05, overlap: float = 0.0) -> KiloGrid:
    """Voxels between two radii around the origin, in a box that is not a cube."""
    box, cells = cells_of_box(BOX, longest)
    axes = [np.linspace(box[0, a], box[1, a], 2 * voxels * cells[a] + 1)[1::2] for a in range(3)]
    radius = np.sqrt(sum(grid**2 for grid in np.meshgrid(*axes, indexing="ij")))
    return grid_of_occupancy(box, cells, (radius > 0.55) & (radius < 0.8), step, overlap)


def random_networks(count: int, shape: NetworkShape | None = None, seed: int = 0) -> TinyNetworks:
    """Networks that all differ, with densities that make a ray dim within a few samples."""
    networks = TinyNetworks(count, shape, same_start=False, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        networks.density_weight.mul_(6.0)
        networks.density_bias.add_(0.5)
        networks.color_weight.mul_(4.0)
    return networks


def shell_scene(
    shape: NetworkShape | None = None,
    *,
    seed: int = 0,
    background: tuple[float, float, float] = (1.0, 0.5, 0.0),
    **grid,
) -> tuple[KiloScene, TinyNetworks]:
    """A scene and the networks it was folded from; `grid` goes to `shell_grid`."""
    cells = shell_grid(**grid)
    networks = random_networks(cells.num_networks, shape or NetworkShape(), seed)
    weights = {name: tensor.numpy() for name, tensor in networks.folded().items()}
    return KiloScene(cells, networks.shape, weights, np.array(background), near=0.2), networks


def sphere_rays(count: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rays from around a scene through it, some of which miss it, and some along an axis."""
    rng = np.random.default_rng(seed)
    away = rng.standard_normal((count, 3))
    origins = 2.5 * away / np.linalg.norm(away, axis=1, keepdims=True)
    directions = rng.uniform(-1.0, 1.0, (count, 3)) - origins
    directions[: count // 8] = np.round(
        directions[: count // 8] / np.abs(directions[: count // 8]).max(1, keepdims=True)
    )
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return origins.astype(np.float32), directions.astype(np.float32)
