"""Thousands of tiny networks as a few stacked tensors, and two ways to ask many of them at once.

Distillation asks every network equally often: batched products. Rays do not: their samples are sorted by network, and
either grouped products or blocks of samples that share a network do the rest (Reiser et al. 2021, section 3.4).
"""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from radcomp_plugins.kilonerf.scene import NetworkShape

LAYERS = ("hidden0", "hidden1", "density", "feature", "direction", "color")
VIEW_DEPENDENT = ("direction", "color")
"""Layers that the paper's fine-tuning keeps small, so that colours do not explain what geometry should."""
DEPTH_SCALE = 0.3
"""Optical depth of a step for a density output of 1: with it, outputs of the order of one make a surface."""
_BLOCK_SIZES = (16, 32, 64, 128, 256)


def encode(x: Float[Tensor, "*batch 3"], octaves: int) -> Float[Tensor, "*batch channels"]:
    """x, then sin(2^i x) and cos(2^i x) for i = 0 .. octaves - 1, three channels each.

    Args:
        x: local positions in [-1, 1], or unit directions.
        octaves: frequencies; there is no factor pi.
    """
    channels = [x]
    for octave in range(octaves):
        angle = x * 2.0**octave
        channels += [angle.sin(), angle.cos()]
    return torch.cat(channels, dim=-1)


class Blocks:
    """Points sorted by network, in blocks of one network each, the last of each network padded.

    Attributes:
        size: points of a block.
        owner: [B] int64 network of each block.
        slot: [M] int64 place of each point among the B * size.
    """

    def __init__(self, counts: Int[Tensor, " N"], points: int) -> None:
        """Lay out `points` points, of which the networks have `counts`."""
        mean = points / max(len(counts), 1)
        # About as many as a network gets on average, so that neither padding nor blocks abound.
        self.size = next((size for size in _BLOCK_SIZES if size >= mean), _BLOCK_SIZES[-1])
        blocks = (counts + self.size - 1) // self.size
        self.owner = torch.arange(len(counts), device=counts.device).repeat_interleave(blocks)
        first_row = (blocks.cumsum(0) - blocks) * self.size
        first = counts.cumsum(0) - counts
        shift = (first_row - first).repeat_interleave(counts)
        self.slot = torch.arange(points, device=counts.device) + shift

    def pad(self, x: Float[Tensor, "M C"]) -> Float[Tensor, "B size C"]:
        """Points in their blocks, zeros between."""
        padded = x.new_zeros(len(self.owner) * self.size, x.shape[1]).index_copy(0, self.slot, x)
        return padded.view(len(self.owner), self.size, x.shape[1])


class TinyNetworks(nn.Module):
    """N networks of one shape, each parameter stacked: `<layer>_weight` [N, inputs, outputs], `<layer>_bias`.

    Attributes:
        shape: of the layers; see `NetworkShape`.
        count: N.
        depth_scale: optical depth of one step of the grid for a density output of 1.
    """

    hidden0_weight: nn.Parameter
    hidden0_bias: nn.Parameter
    hidden1_weight: nn.Parameter
    hidden1_bias: nn.Parameter
    density_weight: nn.Parameter
    density_bias: nn.Parameter
    feature_weight: nn.Parameter
    feature_bias: nn.Parameter
    direction_weight: nn.Parameter
    direction_bias: nn.Parameter
    color_weight: nn.Parameter
    color_bias: nn.Parameter

    def __init__(
        self,
        count: int,
        shape: NetworkShape | None = None,
        *,
        depth_scale: float = DEPTH_SCALE,
        same_start: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        """Draw parameters evenly from -1 / sqrt(inputs) to 1 / sqrt(inputs).

        Args:
            count: number of networks.
            shape: of their layers; the paper's by default.
            depth_scale: see above.
            same_start: all networks start alike, as in the paper, so that neighbours agree from the beginning.
            generator: source of the numbers.
        """
        super().__init__()
        self.shape, self.count, self.depth_scale = shape or NetworkShape(), count, depth_scale
        for name, (inputs, outputs) in self.layers().items():
            bound = 1.0 / math.sqrt(inputs)
            for kind, size in (("weight", (inputs, outputs)), ("bias", (outputs,))):
                drawn = torch.rand(1 if same_start else count, *size, generator=generator) * (2 * bound) - bound
                setattr(self, f"{name}_{kind}", nn.Parameter(drawn.expand(count, *size).clone()))

    def layers(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each layer."""
        width = self.shape.width
        return {
            "hidden0": (self.shape.position_size, width),
            "hidden1": (width, width),
            "density": (width, 1),
            "feature": (width, width),
            "direction": (width + self.shape.direction_size, width),
            "color": (width, 3),
        }

    def parameters_of(self, layer: str) -> tuple[Float[Tensor, "N inputs outputs"], Float[Tensor, "N outputs"]]:
        """Weight and bias of a layer of all networks."""
        return getattr(self, f"{layer}_weight"), getattr(self, f"{layer}_bias")

    def view_dependent_parameters(self) -> Iterator[Tensor]:
        """Parameters of the layers that see the direction."""
        for layer in VIEW_DEPENDENT:
            yield from self.parameters_of(layer)

    def optical_depth(self, raw: Tensor, steps: float | Tensor = 1.0) -> Tensor:
        """Optical depth, of `raw`'s shape, of samples so many of the grid's steps long, from density outputs."""
        return raw.relu() * (self.depth_scale * steps)

    def balanced(
        self, points: Float[Tensor, "N B 3"], directions: Float[Tensor, "N B 3"]
    ) -> tuple[Float[Tensor, "N B"], Float[Tensor, "N B 3"]]:
        """Ask every network about B points of its own.

        Args:
            points: local positions.
            directions: unit, scene axes.

        Returns:
            Density outputs before their ReLU, see `optical_depth`, and colours in [0, 1].
        """

        def product(x: Tensor, layer: str) -> Tensor:
            weight, bias = self.parameters_of(layer)
            return torch.baddbmm(bias[:, None], x, weight)

        return self._evaluate(points, directions, product)

    def grouped(
        self, points: Float[Tensor, "M 3"], directions: Float[Tensor, "M 3"], network: Int[Tensor, " M"]
    ) -> tuple[Float[Tensor, " M"], Float[Tensor, "M 3"]]:
        """Ask each point's own network, in any order and any number of points to a network, none included.

        Args:
            points: local positions.
            directions: unit, scene axes.
            network: ids from 0 to N - 1.

        Returns:
            Density outputs before their ReLU, see `optical_depth`, and colours in [0, 1], in the points' order.
        """
        if len(network) == 0:
            return points.new_zeros(0), points.new_zeros(0, 3)
        order = network.argsort(stable=True)
        counts = torch.bincount(network, minlength=self.count)
        evaluate = self._sorted if _has_grouped_products(points) else self._blocked
        raw, rgb = evaluate(points[order], directions[order], counts)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return raw[back], rgb[back]

    def _sorted(self, points: Tensor, directions: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Points sorted by network through grouped products."""
        ends = counts.cumsum(0).int()

        def product(x: Tensor, layer: str) -> Tensor:
            weight, bias = self.parameters_of(layer)
            # The bias is one more input that is always 1: its gradient then is a product as well, and rows get the
            # multiple of 16 bytes that the kernel asks for.
            inputs, outputs = weight.shape[1] + 1, weight.shape[2]
            one = x.new_zeros(1 + (-inputs) % 4)
            one[0] = 1.0
            extended = torch.cat([x, one.expand(len(x), -1)], dim=-1)
            stacked = F.pad(torch.cat([weight, bias[:, None]], dim=1), (0, (-outputs) % 4, 0, len(one) - 1))
            return F.grouped_mm(extended, stacked, offs=ends)[:, :outputs]

        return self._evaluate(points, directions, product)

    def _blocked(self, points: Tensor, directions: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Points sorted by network through batched products, in padded blocks of one network each."""
        blocks = Blocks(counts, len(points))
        owner = blocks.owner

        def product(x: Tensor, layer: str) -> Tensor:
            weight, bias = self.parameters_of(layer)
            return torch.baddbmm(bias[owner][:, None], x, weight[owner])

        raw, rgb = self._evaluate(blocks.pad(points), blocks.pad(directions), product)
        return raw.reshape(-1)[blocks.slot], rgb.reshape(-1, 3)[blocks.slot]

    def _evaluate(
        self, points: Tensor, directions: Tensor, product: Callable[[Tensor, str], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The layers, one after the other, given how inputs of all networks are multiplied by a layer."""
        hidden = product(encode(points, self.shape.position_octaves), "hidden0").relu()
        hidden = product(hidden, "hidden1").relu()
        raw, feature = product(hidden, "density"), product(hidden, "feature")
        seen = torch.cat([feature, encode(directions, self.shape.direction_octaves)], dim=-1)
        rgb = product(product(seen, "direction").relu(), "color").sigmoid()
        return raw[..., 0], rgb

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """The arrays of `KiloScene.weights`, float32 on the parameters' device: feature multiplied into direction.

        Products are in float64, so that folding costs nothing that can be seen.
        """
        double = {layer: tuple(p.double() for p in self.parameters_of(layer)) for layer in LAYERS}
        width = self.shape.width
        (feature, feature_bias), (direction, direction_bias) = double.pop("feature"), double["direction"]
        upper = direction[:, :width]
        double["direction"] = (
            torch.cat([feature @ upper, direction[:, width:]], dim=1),
            direction_bias + (feature_bias[:, None] @ upper)[:, 0],
        )
        density, density_bias = double["density"]
        double["density"] = density * self.depth_scale, density_bias * self.depth_scale
        result = {}
        for layer in self.shape.folded_layers():
            result[f"{layer}.weight"], result[f"{layer}.bias"] = (p.float() for p in double[layer])
        return result


def _has_grouped_products(x: Tensor) -> bool:
    """Whether torch has grouped products that are worth it here: on CUDA, those of float32 are a loop that waits."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and hasattr(F, "grouped_mm")
