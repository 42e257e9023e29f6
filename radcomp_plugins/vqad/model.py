"""VQ-AD as a nerfstudio model (Takikawa et al. 2022): the field, its octree in training, and what is compared."""

import os
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.models.base_model import Model
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torchmetrics.functional import structural_similarity_index_measure

from radcomp_plugins import compat
from radcomp_plugins.core.metrics import psnr
from radcomp_plugins.core.morton import Codes
from radcomp_plugins.core.octree import Octree
from radcomp_plugins.core.volume import ray_index
from radcomp_plugins.errors import InputError
from radcomp_plugins.vqad import growth, losses
from radcomp_plugins.vqad.config import VqadModelConfig
from radcomp_plugins.vqad.datamanager import BACKGROUND
from radcomp_plugins.vqad.encoding import VQADEncoding
from radcomp_plugins.vqad.field import DirectionalDecoder, VqadField
from radcomp_plugins.vqad.panel import VqadPanel
from radcomp_plugins.vqad.render import Drawn, draw

COLOURS = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0)}

_ENOUGH = 8
"""Samples from which a finest voxel that showed nothing counts as empty. Where there are as many per voxel on average,
one that was never sampled counts as hidden, not as not yet looked at."""
_WORTH_MOVING = 0.95
"""A box is drawn tighter where that takes a twentieth or more off its side."""
_COPIES = 5
"""Tensors of a parameter's size that a training step holds: itself, its gradient, two moments, one in passing."""


class VqadModel(Model):
    """A field whose octree is given, or grows and shrinks while it trains."""

    config: VqadModelConfig
    started: Tensor
    reshapes: Tensor
    box_is_loose: Tensor

    def populate_modules(self) -> None:
        """Build the field over the scene box; its octree is replaced by `start` or by a checkpoint."""
        super().populate_modules()
        config = self.config
        octree = Octree.dense(config.coarsest_level, config.coarsest_level)
        late = config.quantise_from > 0 or config.compression == "full"
        encoding = VQADEncoding(
            octree,
            config.features,
            config.bits,
            mode="full" if late else config.compression,
            codebook_gradient=config.codebook_gradient,
        )
        decoder = DirectionalDecoder(
            config.features,
            config.hidden_dim,
            config.direction_frequencies,
            config.density_activation,
            config.density_bias,
            1.0,
        )
        aabb = self.scene_box.aabb
        self.field = VqadField(
            encoding,
            decoder,
            growth.cube_around(aabb[0], aabb[1], margin=0.0),
            samples_per_voxel=config.samples_per_voxel,
            samples_at=config.samples_at,
            near=config.near_plane,
            opaque=config.opaque,
        )
        # What a resumed run has to know of its past: whether there is an octree, how often it was reshaped, and
        # whether the box may still be drawn tighter.
        self.register_buffer("started", torch.tensor(False))
        self.register_buffer("reshapes", torch.tensor(0))
        self.register_buffer("box_is_loose", torch.tensor(False))
        self.panel = VqadPanel(config.coarsest_level, config.finest_level)
        self.level: int | None = None
        self.step = 0
        self.lpips = compat.LazyLpips(normalize=True)
        self._forget_seen()

    def load_state_dict(self, state_dict: Any, **kwargs: Any) -> Any:
        """Upstream's, of checkpoints with and without LPIPS weights."""
        result = super().load_state_dict(compat.without_lpips(state_dict), **kwargs)
        self._forget_seen()
        return result

    def get_param_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """What vertices hold, the codebooks, and the decoder."""
        encoding = self.field.encoding
        return {
            "grid": [encoding.values, encoding.logits],
            "codebook": [encoding.codebook],
            "decoder": list(self.field.decoder.parameters()),
        }

    def background(self) -> Float[Tensor, " 3"]:
        """Colour behind the scene outside training."""
        name = self.config.background_color
        if name == "auto":
            named = (self.kwargs.get("metadata") or {}).get(BACKGROUND)
            return (torch.zeros(3) if named is None else named).to(self.device)
        return torch.tensor(COLOURS.get(name, COLOURS["black"]), device=self.device)

    @torch.no_grad()
    def start(self, octree: Octree, box: Float[Tensor, "2 3"], box_is_loose: bool) -> None:
        """Begin with an octree.

        Args:
            octree: over `box`.
            box: a cube, scene frame.
            box_is_loose: whether the scene may fill little of it, so that it is drawn tight later.

        Raises:
            InputError: it does not fit memory.
        """
        self.check_memory(octree)
        self.field.box.copy_(box)
        self.field.encoding.restructure(octree)
        self.started.fill_(True)
        self.box_is_loose.fill_(box_is_loose)
        self._forget_seen()

    def check_memory(self, octree: Octree) -> None:
        """Refuse an octree whose training would not fit.

        Raises:
            InputError: it would not.
        """
        config = self.config
        width = 2**config.bits if config.compression == "logits" else config.features
        needed, free = 4 * _COPIES * width * octree.num_vertices, free_memory(self.device)
        if needed > free:
            raise InputError(
                f"{octree.num_vertices:,} vertices with {config.bits} bits each ({config.compression}) need "
                f"{needed / 1e9:.1f} GB in training, {free / 1e9:.1f} GB are free; expected fewer "
                "--pipeline.model.bits, --pipeline.model.compression latent, or a lower --pipeline.model.finest-level"
            )

    def advance(self, step: int, total: int) -> bool:
        """Do what is due before a step of `total`; returns whether parameters have changed their shapes."""
        self.step, config = step, self.config
        changed = False
        while int(self.reshapes) < len(config.reshape_at) and step >= config.reshape_at[int(self.reshapes)] * total:
            self.reshape()
            self.reshapes += 1
            changed = True
        encoding = self.field.encoding
        if config.compression != "full" and encoding.mode == "full" and step >= config.quantise_from * total:
            encoding.quantise(config.compression)
            changed = True
        return changed

    @torch.no_grad()
    def reshape(self) -> None:
        """Prune the finest voxels that rays found nothing in; then tighten the box, or split what is left."""
        octree, box = self.field.octree, self.field.box
        enough = float(self.visits.sum()) >= _ENOUGH * len(self.visits)
        doubtful = (self.visits > 0) & (self.visits < _ENOUGH)
        keep = (self.seen > self.config.prune_weight) | doubtful
        if not enough:
            keep |= self.visits == 0
        if not bool(keep.any()):
            CONSOLE.log("[yellow]No voxel shows anything yet: the octree stays as it is.")
            keep = torch.ones_like(keep)
        kept, other = octree.voxels[-1][keep.cpu().numpy()], box
        if bool(self.box_is_loose):
            # What has not been looked at yet may hold anything.
            shown = torch.where(doubtful | (self.visits == 0), 1.0, self.seen)[keep]
            other = growth.box_around_voxels(kept, octree.finest, box, shown)
        if growth.side_of(other) < _WORTH_MOVING * growth.side_of(box):
            self._move_to(other, growth.voxels_in_other_box(kept, octree.finest, box, other))
        else:
            new = growth.split(octree, kept, octree.finest < self.config.finest_level)
            # Fog in the corners may hold it wide for a while; with the finest voxels it would cost too much to move.
            self.box_is_loose &= new.finest < self.config.finest_level
            self.check_memory(new)
            self.field.encoding.restructure(new.to(self.device))
        self._forget_seen()
        octree = self.field.octree
        CONSOLE.log(
            f"Octree to level {octree.finest}: {len(octree.voxels[-1]):,} voxels, {octree.num_vertices:,} vertices"
        )

    def _move_to(self, box: Float[Tensor, "2 3"], voxels: Codes) -> None:
        """Go on in another box, with finest voxels of its grid."""
        octree = self.field.octree
        new = Octree.from_finest(voxels, octree.finest, octree.coarsest).to(self.device)
        if self.field.encoding.mode == "full":
            growth.carry_over(self.field.encoding, self.field.box.clone(), new, box)
        else:
            # Indices cannot be moved to other places; so early there is little to lose.
            self.field.encoding.restructure(new)
        self.field.box.copy_(box)

    def _forget_seen(self) -> None:
        """Begin anew to note what rays find in the finest voxels."""
        self.seen = torch.zeros(len(self.field.octree.voxels[-1]), device=self.field.box.device)
        self.visits = torch.zeros_like(self.seen)

    def _note_seen(self, drawn: Drawn) -> None:
        """Note the largest weight that samples had in each of the finest voxels, and how many there were.

        A sample that is far from the heaviest of its ray counts as nothing: it lies before or behind what is seen.
        """
        nodes = drawn.nodes.long() - self.field.octree.node_starts[-2]
        mine = nodes >= 0
        if self.seen.device != nodes.device:
            self.seen, self.visits = self.seen.to(nodes.device), self.visits.to(nodes.device)
        rays = ray_index(drawn.ray_offsets)
        heaviest = drawn.weights.new_zeros(drawn.rays).scatter_reduce_(0, rays, drawn.weights, "amax")
        matters = drawn.weights >= self.config.prune_share * heaviest[rays]
        self.seen.scatter_reduce_(0, nodes[mine], (drawn.weights * matters)[mine], "amax")
        self.visits.scatter_add_(0, nodes[mine], torch.ones_like(drawn.weights[mine]))

    def draw_level(self) -> int:
        """A level of detail for a training step, each finer one likelier than the last (the paper, section 7.3)."""
        octree = self.field.octree
        chance = self.config.lod_growth ** torch.arange(len(octree.levels), dtype=torch.float32)
        return octree.coarsest + int(torch.multinomial(chance, 1))

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        """Colours of rays: in training without background, which `get_loss_dict` chooses."""
        origins, directions = ray_bundle.origins, ray_bundle.directions
        if self.training:
            level = self.draw_level()
            drawn = draw(self.field, origins, directions, level=level, jitter=True, max_samples=self.config.max_samples)
            if level == self.field.octree.finest:
                self._note_seen(drawn)
            return {"rgb": drawn.rgb, "accumulation": drawn.accumulation, "level": level, "drawn": drawn}
        level = int(self.panel.level.value) if self.level is None else self.level
        drawn = draw(self.field, origins, directions, level=level)
        outputs = {
            "rgb": losses.on_background(drawn.rgb, drawn.accumulation, self.background()).clamp(0.0, 1.0),
            "accumulation": drawn.accumulation[:, None],
            "depth": drawn.depth[:, None],
        }
        return self.panel.finish(self, origins, directions, outputs)

    def get_metrics_dict(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        """Samples and rays of the step; PSNR outside training."""
        if "drawn" in outputs:
            drawn: Drawn = outputs["drawn"]
            octree = self.field.octree
            return {
                "samples_per_ray": drawn.samples / max(drawn.rays, 1),
                "rays": drawn.rays,
                "vertices": octree.num_vertices,
            }
        image = batch["image"].to(outputs["rgb"])
        target = losses.photo_on_background(image.view(-1, image.shape[-1]), self.background())
        return {"psnr": psnr(target, outputs["rgb"].view(-1, 3))}

    def get_loss_dict(
        self, outputs: dict[str, Any], batch: dict[str, Any], metrics_dict: dict[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """The colours' squared error, and what keeps indices in order."""
        image = batch["image"].to(outputs["rgb"])
        image = image.view(-1, image.shape[-1])
        if "drawn" not in outputs:
            target = losses.photo_on_background(image, self.background())
            return {"rgb_loss": losses.colour(outputs["rgb"].view(-1, 3), target)}
        image = image[: len(outputs["rgb"])]
        random = image.shape[-1] == 4 or self.config.background_color == "random"
        background = torch.rand_like(outputs["rgb"]) if random else self.background()
        rgb = losses.on_background(outputs["rgb"], outputs["accumulation"], background)
        result = {"rgb_loss": losses.colour(rgb, losses.photo_on_background(image, background))}
        encoding, config = self.field.encoding, self.config
        if encoding.mode == "latent" and config.commitment_loss_mult > 0:
            unit = encoding.codebook.detach().var().clamp(min=1e-8)
            result["commitment_loss"] = (
                config.commitment_loss_mult * result["rgb_loss"].detach() * (encoding.commitment() / unit)
            )
        if encoding.mode == "logits" and config.entropy_loss_mult > 0:
            result["entropy_loss"] = config.entropy_loss_mult * encoding.index_entropy()
        return result

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Any]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR, SSIM and LPIPS of a whole picture, the file's predicted size, and the picture beside the photo."""
        rgb = outputs["rgb"]
        image = batch["image"].to(rgb)
        image = losses.photo_on_background(image.view(-1, image.shape[-1]), self.background()).view(rgb.shape)
        first, second = (t.movedim(-1, 0)[None] for t in (image, rgb))
        ssim: Any = structural_similarity_index_measure(second, first, data_range=1.0)
        metrics = {
            "psnr": float(psnr(image, rgb)),
            "ssim": float(ssim),
            "lpips": float(self.lpips(first, second)),
            "vertices": float(self.field.octree.num_vertices),
            "predicted_bytes": float(self.predicted_bytes()),
        }
        return metrics, {"img": torch.cat([image, rgb], dim=1), "error": (rgb - image).abs()}

    def predicted_bytes(self, level: int | None = None) -> int:
        """Bytes of a file of the levels up to `level` before entropy coding: octree, indices, codebooks, decoder."""
        octree, encoding, decoder = self.field.octree, self.field.encoding, self.field.decoder
        used = self.field.finest(level) - octree.coarsest + 1
        indices = octree.vertex_starts[used] * encoding.bits / 8
        books = used * 2**encoding.bits * encoding.features * 2
        # A byte for each voxel that has children, and a bit for each place of the coarsest grid.
        shape = octree.node_starts[used - 1] + 8**octree.coarsest / 8
        return int(indices + books + shape + 2 * sum(p.numel() for p in decoder.parameters()))


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
