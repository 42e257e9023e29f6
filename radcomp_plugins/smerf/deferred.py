"""The deferred appearance network: one small network per ray, its parameters interpolated by where the camera is.

Duckworth et al. 2024 keep a P^3 grid of parameter sets in every submodel, so that a network sixteen wide can still
show reflections that change from one end of a room to the other.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from radcomp_plugins.core.gather import gather
from radcomp_plugins.smerf.layout import NUM_FEATURES, DeferredMlp, Layout

NUM_BANDS = 4
"""Octaves of the encoding of the view direction; the viewers have it built in."""
DIRECTION_INPUTS = 3 + 2 * 3 * NUM_BANDS
NUM_LAYERS = 3
"""Layers of the network; the viewers have it built in."""


def encode_directions(directions: Float[Tensor, "N 3"]) -> Float[Tensor, "N 27"]:
    """Unit directions, their sines at 1, 2, 4 and 8 times, then their cosines; x, y, z innermost, as the viewers do."""
    scales = 2.0 ** torch.arange(NUM_BANDS, dtype=directions.dtype, device=directions.device)
    scaled = (directions[:, None, :] * scales[:, None]).flatten(1)
    return torch.cat([directions, scaled.sin(), (scaled + 0.5 * math.pi).sin()], dim=-1)


def num_inputs(layout: Layout) -> int:
    """Inputs of the first layer: the features, once or twice, and the encoded direction."""
    return NUM_FEATURES * (2 if layout.feature_concat else 1) + DIRECTION_INPUTS


def cell_position(origins: Float[Tensor, "N 3"], centres: Float[Tensor, "N 3"], per_axis: int) -> Float[Tensor, "N 3"]:
    """Where ray origins are in their submodel's cell: the cell is [-1, 1]^3. Both in the unit frame."""
    return (origins - centres) * per_axis


def parameter_weights(
    position: Float[Tensor, "N 3"], grid_size: int
) -> tuple[Int[Tensor, "N 8"], Float[Tensor, "N 8"]]:
    """The eight parameter sets around a position in the cell, and their trilinear weights.

    Args:
        position: in [-1, 1] within the cell, unit axes; what lies outside is clamped to the outermost sets.
        grid_size: P.

    Returns:
        Indices into the flattened [z, y, x] grid, and weights that sum to 1.
    """
    location = 0.5 * (position + 1.0) * grid_size - 0.5
    low = location.floor()
    fraction = location - low
    index = torch.zeros(len(position), 8, dtype=torch.long, device=position.device)
    weight = torch.ones(len(position), 8, dtype=position.dtype, device=position.device)
    corners = torch.arange(8, device=position.device)
    for axis in range(3):
        up = (corners >> axis) & 1
        cell = (low[:, axis, None] + up).clamp(0, grid_size - 1).long()
        index = index + cell * grid_size**axis
        weight = weight * torch.where(up == 1, fraction[:, axis, None], 1.0 - fraction[:, axis, None])
    return index, weight


class DeferredNetwork(nn.Module):
    """The networks of all live submodels.

    Attributes:
        kernels: per layer [submodels * P^3, inputs * outputs].
        biases: per layer [submodels * P^3, outputs].
    """

    def __init__(self, layout: Layout, grid_size: int, width: int = 16) -> None:
        """Random kernels (He), zero biases.

        Args:
            layout: says how many features come in and which submodels live.
            grid_size: P, parameter sets along each axis of a submodel's cell.
            width: channels of the two hidden layers, a multiple of 4.

        Raises:
            ValueError: a size that the viewers cannot take.
        """
        super().__init__()
        if width < 4 or width % 4 or grid_size < 1:
            raise ValueError(f"deferred network of width {width} on a grid of {grid_size}: expected multiples of 4, 1")
        self.layout, self.grid_size = layout, grid_size
        self.sizes = [(num_inputs(layout), width), (width, width), (width, 3)]
        sets = len(layout.alive) * grid_size**3
        self.kernels = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in self.sizes:
            bound = math.sqrt(6.0 / fan_in)
            one = torch.empty(len(layout.alive), 1, fan_in * fan_out).uniform_(-bound, bound)
            # All sets of a submodel begin alike: what lies between them is a network, not an average of unlike ones.
            self.kernels.append(nn.Parameter(one.expand(-1, grid_size**3, -1).reshape(sets, -1).clone()))
            self.biases.append(nn.Parameter(torch.zeros(sets, fan_out)))
        self._begin_white_behind()

    @torch.no_grad()
    def _begin_white_behind(self) -> None:
        """Begin with white where a ray ends in nothing, and with next to nothing on the scene.

        The picture is the diffuse colour plus what comes from here. Before a white background, a network that knows no
        difference turns white everywhere within a hundred steps; the scene's diffuse colours then go to nothing, past
        where their sigmoid has a gradient, and stay there: of two runs on the same data one ended at 15 dB, the other
        at 30. So the first hidden unit is made to be 2 where all features are 0, and at most 0 where they are about a
        half, and to be what the output listens to at first.
        """
        first, width = self.sizes[0]
        features = first - DIRECTION_INPUTS
        kernel, hidden, out = (k.view(-1, *size) for k, size in zip(self.kernels, self.sizes, strict=True))
        kernel[:, :, 0] = 0.0
        kernel[:, 3:features, 0] = -8.0 / (features - 3)
        self.biases[0][:, 0] = 2.0
        hidden[:, :, 0] = 0.0
        hidden[:, 0, 0] = 1.0
        out *= 0.1
        out[:, 0, :] = 2.0
        self.biases[2].fill_(-1.0)

    def hidden(self, x: Tensor) -> Tensor:
        """The activation of the hidden layers."""
        return nn.functional.elu(x) if self.layout.activation == "elu" else nn.functional.relu(x)

    def forward(
        self,
        features: Float[Tensor, "N channels"],
        directions: Float[Tensor, "N 3"],
        position: Float[Tensor, "N 3"],
        row: Int[Tensor, " N"],
    ) -> Float[Tensor, "N 3"]:
        """The view-dependent colour of rays, in [0, 1].

        Args:
            features: accumulated along the ray, the background already in the first three.
            directions: unit length, unit axes.
            position: of the ray's origin in its cell (`cell_position`).
            row: of each ray's submodel among the live ones.
        """
        index, weight = parameter_weights(position, self.grid_size)
        index = index + row[:, None] * self.grid_size**3
        x = torch.cat([features, encode_directions(directions)], dim=-1)
        for layer, (fan_in, fan_out) in enumerate(self.sizes):
            kernel = gather(self.kernels[layer], index, weight)
            bias = gather(self.biases[layer], index, weight)
            x = torch.bmm(x[:, None, :], kernel.view(-1, fan_in, fan_out))[:, 0] + bias
            x = self.hidden(x) if layer < NUM_LAYERS - 1 else x.sigmoid()
        return x

    def at(self, position: Float[Tensor, " 3"], row: int) -> list[tuple[Tensor, Tensor]]:
        """Kernel [inputs, outputs] and bias of each layer for all rays of one camera: a picture needs them once."""
        index, weight = parameter_weights(position[None], self.grid_size)
        index = index[0] + row * self.grid_size**3
        return [
            ((weight[0] @ kernel[index]).view(fan_in, fan_out), weight[0] @ bias[index])
            for kernel, bias, (fan_in, fan_out) in zip(self.kernels, self.biases, self.sizes, strict=True)
        ]

    def apply_layers(self, layers: list[tuple[Tensor, Tensor]], features: Tensor, directions: Tensor) -> Tensor:
        """The view-dependent colour [N, 3] of rays that share their parameters, those of `at`."""
        x = torch.cat([features, encode_directions(directions)], dim=-1)
        for layer, (kernel, bias) in enumerate(layers):
            x = torch.addmm(bias, x, kernel)
            x = self.hidden(x) if layer < NUM_LAYERS - 1 else x.sigmoid()
        return x

    def on_grid(self) -> list[Tensor]:
        """All parameters as [submodels, P, P, P, numbers], for a loss that compares neighbouring sets."""
        grid = (len(self.layout.alive), self.grid_size, self.grid_size, self.grid_size, -1)
        return [parameter.view(grid) for parameter in (*self.kernels, *self.biases)]

    def baked(self) -> DeferredMlp:
        """The parameters as the asset holds them."""
        grid = (len(self.layout.alive), self.grid_size, self.grid_size, self.grid_size)
        return DeferredMlp(
            kernels=[
                kernel.detach().cpu().float().numpy().reshape(*grid, *size)
                for kernel, size in zip(self.kernels, self.sizes, strict=True)
            ],
            biases=[bias.detach().cpu().float().numpy().reshape(*grid, -1) for bias in self.biases],
        )

    @classmethod
    def from_baked(cls, baked: DeferredMlp, layout: Layout) -> "DeferredNetwork":
        """The network of an asset."""
        network = cls(layout, baked.kernels[0].shape[1], baked.kernels[0].shape[-1])
        with torch.no_grad():
            for layer in range(NUM_LAYERS):
                network.kernels[layer].copy_(_rows(baked.kernels[layer], network.kernels[layer]))
                network.biases[layer].copy_(_rows(baked.biases[layer], network.biases[layer]))
        return network.requires_grad_(False)


def _rows(array: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32)).view_as(like)


def shade(
    features: Float[Tensor, "N channels"],
    accumulation: Float[Tensor, " N"],
    background: Float[Tensor, "3"] | Float[Tensor, "N 3"],
) -> Float[Tensor, "N channels"]:
    """The network's input features: those accumulated, with the background behind the diffuse colour.

    The picture is the diffuse colour without the background, plus the network's output; so what is behind the scene is
    for the network to say (SNeRG's model as SMERF and its viewer have it).
    """
    behind = (1.0 - accumulation).clamp(min=0.0)[:, None] * background
    return torch.cat([features[:, :3] + behind, features[:, 3:]], dim=-1)
