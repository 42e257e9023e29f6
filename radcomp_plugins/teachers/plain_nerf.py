"""Plain NeRF checkpoints: coarse and fine networks of the nerf-pytorch families, as teachers of points and of rays.

Three families of names are known, told apart by the tensors alone: yenchenlin/nerf-pytorch (`pts_linears`, also in
its descendants), krrish94/nerf-pytorch (`layers_xyz`) and kwea123/nerf_pl (`xyz_encoding_1`). All of them encode an
unscaled position x as [x, sin x, cos x, sin 2x, cos 2x, ...], have a ReLU before the density and a sigmoid before the
colour, and live in the frame of the dataset's own poses (Mildenhall et al. 2020).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor, nn

from radcomp_plugins.errors import InputError
from radcomp_plugins.teachers.points import CPU_CHUNK, TaughtPoints, points_in_chunks
from radcomp_plugins.teachers.ray_chunks import in_chunks
from radcomp_plugins.teachers.rays import TaughtRays

MAX_LAYERS = 32
RAYS_AT_ONCE = 1024


def encode(x: Float[Tensor, "N 3"], octaves: int) -> Float[Tensor, "N encoded"]:
    """[x, sin x, cos x, sin 2x, cos 2x, ...]: Mildenhall et al. 2020, Eq. 4, without the factor pi, and x itself."""
    parts = [x]
    for octave in range(octaves):
        parts += [torch.sin(x * 2.0**octave), torch.cos(x * 2.0**octave)]
    return torch.cat(parts, dim=-1)


@dataclass(frozen=True)
class Family:
    """How a code base names its layers, and what it does between them.

    Attributes:
        name: of the code base.
        first: the first layer, if it has a name of its own.
        trunk: pattern of the hidden layers; the group is their number.
        feature: layer between trunk and direction.
        density: from the trunk.
        direction: pattern of the layers that see the direction.
        color: the last layer.
        first_relu: whether a ReLU follows `first`.
        feature_relu: whether one follows `feature`.
        position_first: where the position comes in again, whether it stands before the hidden values.
    """

    name: str
    first: str | None
    trunk: str
    feature: str
    density: str
    direction: str
    color: str
    first_relu: bool
    feature_relu: bool
    position_first: bool


FAMILIES = (
    Family(
        "yenchenlin/nerf-pytorch", None, r"pts_linears\.(\d+)", "feature_linear", "alpha_linear",
        r"views_linears\.(\d+)", "rgb_linear", True, False, True,
    ),
    Family(
        "krrish94/nerf-pytorch", "layer1", r"layers_xyz\.(\d+)", "fc_feat", "fc_alpha", r"layers_dir\.(\d+)", "fc_rgb",
        False, True, False,
    ),
    Family(
        "kwea123/nerf_pl", None, r"xyz_encoding_(\d+)\.0", "xyz_encoding_final", "sigma", r"dir_encoding\.(\d+)",
        "rgb.0", True, False, True,
    ),
)  # fmt: skip


class PlainMlp(nn.Module):
    """One network of a plain NeRF.

    Attributes:
        position_octaves: of the encoding.
        direction_octaves: of the encoding.
    """

    def __init__(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Build the network that the tensors describe.

        Args:
            tensors: `<layer>.weight` and `<layer>.bias` by the code base's own names.
            source: for messages.

        Raises:
            InputError: no known family, or layers that do not fit each other.
        """
        super().__init__()
        self._source = source
        self.family = _family_of(tensors, source)
        take = _Layers(tensors, source)
        trunk = take.numbered(self.family.trunk)
        self.first = take(self.family.first) if self.family.first else None
        self.trunk = nn.ModuleList(trunk)
        self.feature, self.density = take(self.family.feature), take(self.family.density)
        self.direction = nn.ModuleList(take.numbered(self.family.direction))
        self.color = take(self.family.color)
        self._check()

    def _check(self) -> None:
        start = self.first if self.first is not None else self.trunk[0]
        width = int(self.trunk[0].out_features)  # type: ignore[arg-type]
        self._width, inputs = width, int(start.in_features)  # type: ignore[arg-type]
        self.position_octaves = _octaves(inputs, self._source, "positions")
        self.direction_octaves = _octaves(
            int(self.direction[0].in_features) - self.feature.out_features,  # type: ignore[arg-type]
            self._source, "directions",
        )  # fmt: skip
        hidden = self.first.out_features if self.first is not None else inputs
        layers = [*self.trunk]
        for index, layer in enumerate(layers):
            wanted = (hidden,) if index == 0 else (hidden, hidden + inputs)
            self._fits(layer, f"hidden layer {index}", wanted)
            hidden = int(layer.out_features)  # type: ignore[arg-type]
        self._fits(self.feature, self.family.feature, (hidden,))
        self._fits(self.density, self.family.density, (hidden,), 1)
        hidden = int(self.direction[0].in_features)  # type: ignore[arg-type]
        for index, layer in enumerate(self.direction):
            self._fits(layer, f"direction layer {index}", (hidden,))
            hidden = int(layer.out_features)  # type: ignore[arg-type]
        self._fits(self.color, self.family.color, (hidden,), 3)

    def _fits(self, layer: nn.Module, name: str, inputs: tuple[int, ...], outputs: int | None = None) -> None:
        got = (int(layer.in_features), int(layer.out_features))  # type: ignore[arg-type]
        if got[0] not in inputs or (outputs is not None and got[1] != outputs):
            wanted = f"{' or '.join(map(str, inputs))} inputs" + (f" and {outputs} outputs" if outputs else "")
            raise InputError(f"{self._source}: {name} has {got[0]} inputs and {got[1]} outputs, expected {wanted}")

    def forward(
        self, positions: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]
    ) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 3"]]:
        """Density per unit of the dataset's frame, and colour in [0, 1]; directions of unit length."""
        encoded = encode(positions, self.position_octaves)
        hidden = encoded
        if self.first is not None:
            hidden = self.first(hidden)
            hidden = hidden.relu_() if self.family.first_relu else hidden
        for index, layer in enumerate(self.trunk):
            if index and int(layer.in_features) > hidden.shape[1]:  # type: ignore[arg-type]
                pair = (encoded, hidden) if self.family.position_first else (hidden, encoded)
                hidden = torch.cat(pair, dim=-1)
            hidden = layer(hidden).relu_()
        density = self.density(hidden)[:, 0].relu_()
        feature = self.feature(hidden)
        feature = feature.relu_() if self.family.feature_relu else feature
        seen = torch.cat([feature, encode(directions, self.direction_octaves)], dim=-1)
        for layer in self.direction:
            seen = layer(seen).relu_()
        return density, self.color(seen).sigmoid_()


class _Layers:
    """Linear layers out of named tensors, checked."""

    def __init__(self, tensors: Mapping[str, Tensor], source: str) -> None:
        self.tensors, self.source = tensors, source

    def __call__(self, name: str) -> nn.Linear:
        weight, bias = self.tensors.get(f"{name}.weight"), self.tensors.get(f"{name}.bias")
        if weight is None and bias is None and f"{name}.0.weight" in self.tensors:
            return self(f"{name}.0")
        if weight is None or bias is None:
            raise InputError(f"{self.source}: {name} has no weight or no bias; expected both")
        floats = weight.is_floating_point() and bias.is_floating_point()
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or 0 in weight.shape or not floats:
            raise InputError(
                f"{self.source}: {name} has a weight of shape {tuple(weight.shape)} and a bias of {tuple(bias.shape)}; "
                "expected [outputs, inputs] and [outputs], of real numbers"
            )
        if not (bool(torch.isfinite(weight).all()) and bool(torch.isfinite(bias).all())):
            raise InputError(f"{self.source}: {name} has NaN or infinite values, expected a trained network")
        layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
        layer.weight.data, layer.bias.data = weight.float().clone(), bias.float().clone()
        return layer  # type: ignore[return-value]  # skip_init is typed for any module

    def numbered(self, pattern: str) -> list[nn.Linear]:
        """Layers by ascending number."""
        found = {
            int(match[1]): match[0]
            for key in self.tensors
            if (match := re.fullmatch(pattern, key.removesuffix(".weight"))) and key.endswith(".weight")
        }
        if len(found) > MAX_LAYERS:
            raise InputError(f"{self.source}: {len(found)} hidden layers, expected at most {MAX_LAYERS}")
        return [self(found[number]) for number in sorted(found)]


def _family_of(tensors: Mapping[str, Tensor], source: str) -> Family:
    for family in FAMILIES:
        if any(re.fullmatch(family.trunk + r"\.weight", key) for key in tensors):
            if not any(re.fullmatch(family.direction + r"\.weight", key) for key in tensors):
                raise InputError(f"{source}: trained without viewing directions; expected a NeRF that has them")
            return family
    known = ", ".join(family.name for family in FAMILIES)
    raise InputError(f"{source}: its layers ({', '.join(sorted(tensors)[:3])}, ...) are of no known NeRF ({known})")


def _octaves(channels: int, source: str, what: str) -> int:
    octaves, rest = divmod(channels - 3, 6)
    if rest or not 0 <= octaves <= 20:
        raise InputError(f"{source}: {channels} channels of encoded {what}, expected 3 + 6 for each octave")
    return octaves


class PlainNerfTeacher:
    """A plain NeRF: see `PointTeacher` and `RayTeacher`. Points are answered by the fine network.

    Attributes:
        coarse: network that rays are sampled by first.
        fine: network that counts.
        background: [3] white, as these code bases have it for synthetic scenes.
        near: where rays begin, units of the dataset.
        far: where they end, units of the dataset.
        samples: of the coarse network, and how many more of the fine one.
        pixel_offset: where in a pixel the code bases' training rays go through: its corner, not its middle.
    """

    background: Float[Tensor, " 3"]
    pixel_offset = 0.0

    def __init__(
        self,
        coarse: PlainMlp,
        fine: PlainMlp,
        near: float = 2.0,
        far: float = 6.0,
        samples: tuple[int, int] = (64, 64),
    ) -> None:
        self.coarse, self.fine = (network.eval().requires_grad_(False) for network in (coarse, fine))
        self.near, self.far, self.samples = near, far, samples
        self.background = torch.ones(3)
        self._rotation, self._shift, self._scale = torch.eye(3), torch.zeros(3), 1.0

    @property
    def trained_from(self) -> float:
        """Where rays begin, scene units."""
        return self.near * self._scale

    def place(self, transform: Float[Tensor, "3 4"], scale: float) -> None:
        """Say where the dataset's frame, in which the networks live, lies in the scene's.

        Args:
            transform: rotation and shift.
            scale: x_scene = scale * (transform @ [x_dataset, 1]).
        """
        device = self.background.device
        self._rotation, self._shift = transform[:, :3].float().to(device), transform[:, 3].float().to(device)
        self._scale = float(scale)

    def to(self, device: torch.device | str) -> "PlainNerfTeacher":
        """The same teacher on another device."""
        self.coarse.to(device)
        self.fine.to(device)
        for name in ("background", "_rotation", "_shift"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    @torch.no_grad()
    def query_points(self, positions: Float[Tensor, "N 3"], directions: Float[Tensor, "N 3"]) -> TaughtPoints:
        """See `PointTeacher`."""
        return points_in_chunks(positions, directions, self.background.device, self._answer)

    def _answer(self, positions: Tensor, directions: Tensor) -> TaughtPoints:
        # Rows times the rotation itself are its inverse times columns.
        inside = (positions / self._scale - self._shift) @ self._rotation
        density, rgb = self.fine(inside, directions @ self._rotation)
        return TaughtPoints(density / self._scale, rgb)

    @torch.no_grad()
    def query_rays(self, ray_bundle: RayBundle, *, jitter: bool = False) -> TaughtRays:
        """Coarse samples, then finer ones where those have weight, as the code bases draw them; see `RayTeacher`."""
        return in_chunks(
            ray_bundle, self.background.device, RAYS_AT_ONCE, lambda rays: self._rays(rays, jitter)
        )  # fmt: skip

    def _rays(self, rays: RayBundle, jitter: bool) -> TaughtRays:
        origins = (rays.origins / self._scale - self._shift) @ self._rotation
        directions = rays.directions @ self._rotation
        count, (first, more) = len(origins), self.samples
        even = torch.linspace(self.near, self.far, first, device=origins.device).expand(count, first)
        if jitter:
            even = even + (torch.rand_like(even) - 0.5) * (self.far - self.near) / (first - 1)
        density, _ = self._along(self.coarse, origins, directions, even)
        weights = _weights(density, even)
        middle = 0.5 * (even[:, 1:] + even[:, :-1])
        finer = sample_pdf(middle, weights[:, 1:-1], more, jitter)
        distances = torch.cat([even, finer], dim=-1).sort(dim=-1).values
        density, rgb = self._along(self.fine, origins, directions, distances)
        weights = _weights(density, distances)
        edges = torch.cat([distances, 2 * distances[:, -1:] - distances[:, -2:-1]], dim=-1)
        return TaughtRays(edges * self._scale, weights, (weights[..., None] * rgb).sum(dim=1))

    def _along(
        self, network: PlainMlp, origins: Tensor, directions: Tensor, distances: Float[Tensor, "R S"]
    ) -> tuple[Float[Tensor, "R S"], Float[Tensor, "R S 3"]]:
        points = origins[:, None] + distances[..., None] * directions[:, None]
        towards = directions[:, None].expand_as(points).reshape(-1, 3)
        chunks = zip(points.reshape(-1, 3).split(CPU_CHUNK), towards.split(CPU_CHUNK), strict=True)
        parts = [network(some, these) for some, these in chunks]
        density = torch.cat([part[0] for part in parts]).view(distances.shape)
        return density, torch.cat([part[1] for part in parts]).view(points.shape)


def _weights(density: Float[Tensor, "R S"], distances: Float[Tensor, "R S"]) -> Float[Tensor, "R S"]:
    """Share of the light that each sample sends; a sample's length reaches to the next one, the last one's too."""
    lengths = torch.cat([distances.diff(dim=-1), (distances[:, -1:] - distances[:, -2:-1])], dim=-1)
    depth = density * lengths
    return torch.exp(-(depth.cumsum(dim=-1) - depth)) * -torch.expm1(-depth)


def sample_pdf(
    edges: Float[Tensor, "R edges"], weights: Float[Tensor, "R bins"], count: int, jitter: bool = False
) -> Float[Tensor, "R count"]:
    """Distances at even quantiles of a histogram (Mildenhall et al. 2020, Sec. 5.2), random ones with jitter."""
    share = weights + 1e-5
    share = share / share.sum(dim=-1, keepdim=True)
    cdf = torch.nn.functional.pad(share.cumsum(dim=-1), (1, 0))
    u = torch.linspace(0.0, 1.0, count, device=edges.device).expand(len(edges), count)
    if jitter:
        u = torch.rand_like(u)
    above = torch.searchsorted(cdf, u.contiguous(), right=True).clamp(1, edges.shape[1] - 1)
    low, high = cdf.gather(1, above - 1), cdf.gather(1, above)
    span = high - low
    part = (u - low) / torch.where(span < 1e-5, torch.ones_like(span), span)
    start, end = edges.gather(1, above - 1), edges.gather(1, above)
    return start + part.clamp(0.0, 1.0) * (end - start)
