"""nerfstudio's `HashEncoding`, with numba kernels where it runs on the CPU."""

from jaxtyping import Float
from nerfstudio.field_components.encodings import HashEncoding
from torch import Tensor, nn

from radcomp_plugins.core.hashgrid import hash_encode


class CpuTwinHashEncoding(HashEncoding):
    """A torch `HashEncoding` of the same parameters and results, more than ten times faster on CPU tensors.

    Attributes:
        position_gradients: whether gradients flow to the positions. nerfacto's field asks for them at every step and
            uses them for normals and refined cameras only.
    """

    position_gradients: bool = True

    def pytorch_fwd(self, in_tensor: Float[Tensor, "*bs input_dim"]) -> Float[Tensor, "*bs output_dim"]:
        """Features [*bs, L * F] of positions in [0, 1]."""
        positions = in_tensor.reshape(-1, 3)
        if not self.position_gradients:
            positions = positions.detach()
        features = hash_encode(positions, self.hash_table, self.scalings.to(positions.device), self.log2_hashmap_size)
        return features.view(*in_tensor.shape[:-1], features.shape[-1])


def use_cpu_twin(module: nn.Module, position_gradients: bool = True) -> int:
    """Have every torch `HashEncoding` inside a module compute through `hash_encode`.

    The objects stay the same ones and only change their class, so parameters, optimizers, state_dict and whoever holds
    a reference notice nothing. Encodings of tiny-cuda-nn, and subclasses of `HashEncoding`, are left alone.

    Args:
        module: changed in place.
        position_gradients: False saves the gradient to positions where nobody reads it.

    Returns:
        How many encodings were changed.
    """
    stock = [part for part in module.modules() if type(part) is HashEncoding and part.tcnn_encoding is None]
    for part in stock:
        part.__class__ = CpuTwinHashEncoding
        part.position_gradients = position_gradients  # type: ignore[assignment]
    return len(stock)
