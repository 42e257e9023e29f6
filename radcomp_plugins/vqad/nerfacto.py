"""nerfacto with learned codebooks in place of its hash grid: the encoding as a component of another field.

    config.pipeline.model = VqadNerfactoModelConfig(...)   # wherever a NerfactoModelConfig stands
    config.optimizers["vq_grid"] = {...}                   # the grid wants a higher rate than networks do

The octree is full, down to a level: nothing is known of the scene. In unbounded scenes it spans contracted space.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from nerfstudio.field_components.mlp import MLP
from nerfstudio.fields.nerfacto_field import NerfactoField
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig

from radcomp_plugins import compat
from radcomp_plugins.core.octree import Octree
from radcomp_plugins.vqad.encoding import VQADEncoding


@dataclass
class VqadNerfactoModelConfig(NerfactoModelConfig):
    """nerfacto, whose density network reads features from codebooks."""

    _target: type = field(default_factory=lambda: VqadNerfactoModel)
    coarsest_level: int = 3
    """Coarsest level of the full octree, 2^this voxels a side."""
    finest_level: int = 6
    """Finest level. A full octree grows eightfold with each: 0.3 million vertices at 6, 2.1 million at 7."""
    bits: int = 6
    """Bits of an index, 1 to 8."""
    compression: Literal["logits", "latent", "full"] = "logits"
    """What stands for an index in training; as in vqad."""


class VqadNerfactoModel(NerfactoModel):
    """nerfacto with a `VQADEncoding`; everything else is nerfstudio's."""

    config: VqadNerfactoModelConfig

    def populate_modules(self) -> None:
        """Build nerfacto, then put the encoding where its hash grid was."""
        with compat.lazy_lpips():
            super().populate_modules()
        config = self.config
        octree = Octree.dense(config.coarsest_level, config.finest_level)
        encoding = VQADEncoding(octree, bits=config.bits, mode=config.compression)
        use_codebooks(self.field, encoding, config.hidden_dim, position_gradients=config.predict_normals)

    def get_param_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """nerfacto's, with the encoding in a group of its own."""
        groups = super().get_param_groups()
        grid = list(self.field.mlp_base[0].parameters())  # type: ignore[index]
        mine = {id(parameter) for parameter in grid}
        groups["fields"] = [parameter for parameter in groups["fields"] if id(parameter) not in mine]
        return {**groups, "vq_grid": grid}


def use_codebooks(
    nerfacto: NerfactoField, encoding: VQADEncoding, hidden_dim: int = 64, position_gradients: bool = False
) -> None:
    """Have a nerfacto field read its features from an encoding, through a density network of its own.

    Args:
        nerfacto: changed in place.
        encoding: of positions in [0, 1]^3, which is what the field makes of a scene box or of contracted space.
        hidden_dim: width of that network.
        position_gradients: False saves gradients to positions, which nerfacto asks for at every step and uses for
            normals only.
    """
    encoding.position_gradients = position_gradients
    network: Any = MLP(
        in_dim=encoding.get_out_dim(),
        num_layers=2,
        layer_width=hidden_dim,
        out_dim=1 + nerfacto.geo_feat_dim,
        activation=torch.nn.ReLU(),
        out_activation=None,
        implementation="torch",
    )
    nerfacto.mlp_base = torch.nn.Sequential(encoding, network)  # type: ignore[assignment]
