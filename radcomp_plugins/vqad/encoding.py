"""Learned-codebook field encoding (Takikawa et al. 2022): vertices of a sparse octree hold indices into codebooks.

A component for any nerfstudio field: positions in [0, 1]^3 in, features out. What training keeps for a vertex depends
on the mode:

- `full`: its feature vector, for the uncompressed baseline and for the start of the others;
- `logits`: 2^b numbers, whose largest is the index; gradients flow through their softmax (the paper);
- `latent`: a vector, whose nearest code is the index; gradients pass straight through to it. Memory m k instead of
  m 2^b, from a warm start (Note in `VQADEncoding.quantise`);
- `fixed`: an index that nothing changes, for codebooks on random or clustered indices and for decoded files.
"""

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from nerfstudio.field_components.encodings import Encoding
from torch import Tensor

from radcomp_plugins.core.octree import Octree, matching_rows
from radcomp_plugins.core.octree_lookup import interpolate, locate, vertices_read
from radcomp_plugins.core.vq import kmeans
from radcomp_plugins.errors import InputError
from radcomp_plugins.vqad.choice import CodebookGradient, choose, index_of

Mode = Literal["full", "logits", "latent", "fixed"]

_WARM_SHARPNESS = 4.0
"""Logits of a warm start: minus the squared distances over this many times the features' variance."""


class VQADEncoding(Encoding):
    """Features of an octree's vertices, looked up in one codebook per level and summed over the levels.

    Attributes:
        octree: the vertices. Part of the state_dict as codes: loading one adapts octree and parameters to it.
        mode: what is trained; see the module.
        values: [m, k] features (`full`) or latents (`latent`); without rows in the other modes.
        logits: [m, 2^b] (`logits`); without rows in the other modes.
        codebook: [L, 2^b, k]; without entries in mode `full`.
        indices: [m] uint8 (`fixed`); without rows in the other modes.
        level: finest level that is looked up; None is all. Set for a level of detail.
        position_gradients: whether gradients flow to positions that require them, which takes plain torch.
    """

    values: torch.nn.Parameter
    logits: torch.nn.Parameter
    codebook: torch.nn.Parameter
    indices: UInt8[Tensor, " m"]

    def __init__(
        self,
        octree: Octree,
        features: int = 16,
        bits: int = 6,
        mode: Mode = "logits",
        codebook_gradient: CodebookGradient = "hard",
        init_std: float = 0.01,
    ) -> None:
        """Make the encoding with normally distributed entries.

        Args:
            octree: the vertices; `Octree.dense` where nothing is known of the scene.
            features: k, length of a feature vector. The paper: 16.
            bits: b, per index, 1 to 8. The paper: 4 and 6.
            mode: what is trained.
            codebook_gradient: whether a vertex's gradient goes to its code alone (`hard`), or to all codes by their
                softmax (`soft`, the paper's Equation 9 read literally). Of meaning in mode `logits`.
            init_std: standard deviation of all entries at the start. The paper: 0.01.
        """
        super().__init__(in_dim=3)
        if not 1 <= bits <= 8 or features < 1:
            raise ValueError(f"bits {bits}, features {features}: expected 1 to 8, and 1 or more")
        self.octree = octree
        self.features, self.bits, self.init_std = features, bits, init_std
        self.codebook_gradient: CodebookGradient = codebook_gradient
        self.mode: Mode = mode
        self.level: int | None = None
        self.position_gradients = True
        vertices, codes = octree.num_vertices, 2**bits
        self.values = self._normal(vertices if mode in ("full", "latent") else 0, features)
        self.logits = self._normal(vertices if mode == "logits" else 0, codes)
        self.codebook = self._normal(0 if mode == "full" else len(octree.levels), codes, features)
        self.register_buffer("indices", torch.randint(codes, (vertices if mode == "fixed" else 0,)).to(torch.uint8))
        self.last_touched: Int[Tensor, " U"] | None = None
        self._commitment: Float[Tensor, ""] | None = None

    def _normal(self, *shape: int) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.randn(shape) * self.init_std)

    def get_out_dim(self) -> int:
        """Number of features of a position."""
        return self.features

    def forward(self, in_tensor: Float[Tensor, "*bs 3"]) -> Float[Tensor, "*bs k"]:
        """Features of positions in [0, 1]^3; zeros outside and where no level has a voxel."""
        points = in_tensor.reshape(-1, 3)
        if not self.position_gradients:
            points = points.detach()
        nodes = locate(self.octree, points, self.level)
        features = interpolate(self.table(vertices_read(self.octree, nodes)), self.octree, points, nodes)
        return features.view(*in_tensor.shape[:-1], self.features)

    def table(self, rows: Int[Tensor, " U"] | None = None) -> Float[Tensor, "m k"]:
        """Features of all vertices, those that indices select; gradients go straight through the selection.

        Args:
            rows: the only vertices that will be read: the others' rows are without meaning. None is all.
        """
        if self.mode == "full":
            return self.values
        if self.mode == "fixed":
            return self.codebook.flatten(0, 1)[self.flat_codes()]
        if rows is None:
            rows = torch.arange(self.octree.num_vertices, device=self.codebook.device)
        held = self.logits if self.mode == "logits" else self.values
        table, self._commitment = choose(
            held,
            self.codebook,
            rows,
            self.octree.vertex_starts,
            self.mode,
            self.codebook_gradient,  # pyright: ignore[reportArgumentType]
        )
        self.last_touched = rows
        return table

    def flat_codes(self) -> Int[Tensor, " m"]:
        """Row of each vertex's code in the levels' codebooks, one after the other."""
        return self.octree.level_of_vertices() * 2**self.bits + self.current_indices().long()

    @torch.no_grad()
    def current_indices(self) -> UInt8[Tensor, " m"]:
        """Index of each vertex as training has it now.

        Raises:
            ValueError: mode `full` has none.
        """
        if self.mode == "fixed":
            return self.indices
        if self.mode == "full":
            raise ValueError("an encoding of mode full has no indices, expected another mode")
        held = self._per_level(self.logits if self.mode == "logits" else self.values)
        parts = [index_of(part, codes, self.mode) for part, codes in zip(held, self.codebook, strict=True)]
        return torch.cat(parts).to(torch.uint8)

    def commitment(self) -> Float[Tensor, ""]:
        """Mean squared distance of the latents that the last look-up read to their codes; it is given once.

        Without it latents walk away from their codes, and gradients tell them nothing of it.
        """
        commitment, self._commitment = self._commitment, None
        return self.codebook.new_zeros(()) if commitment is None else commitment

    def index_entropy(self) -> Float[Tensor, ""]:
        """Mean entropy, in bits, of the last look-up's mean softmax per level: what an index costs to code.

        Minimising it trades quality for size (the paper, section 8.2). Of meaning in mode `logits`; 0 in others.
        """
        if self.mode != "logits" or self.last_touched is None or len(self.last_touched) == 0:
            return self.codebook.new_zeros(())
        rows = self.last_touched
        level = self.octree.level_of_vertices()[rows]
        total = self.codebook.new_zeros(())
        for number in range(len(self.octree.levels)):
            mine = rows[level == number]
            if len(mine):
                mean = self.logits[mine].softmax(dim=1).mean(dim=0)
                total = total - (mean * (mean + 1e-12).log2()).sum() * len(mine)
        return total / len(rows)

    @torch.no_grad()
    def perplexity(self) -> Float[Tensor, " L"]:
        """2 to the entropy of each level's indices: how many codes are in effective use, up to 2^b."""
        indices, starts = self.current_indices().long(), self.octree.vertex_starts
        result = []
        for number in range(len(self.octree.levels)):
            counts = torch.bincount(indices[starts[number] : starts[number + 1]], minlength=2**self.bits).double()
            share = counts / counts.sum()
            result.append(torch.exp2(-(share * share.clamp(min=1e-300).log2()).sum()))
        return torch.stack(result).float()

    @torch.no_grad()
    def quantise(self, mode: Mode, seed: int = 0, weights: Float[Tensor, " m"] | None = None) -> None:
        """Go over from mode `full` to another, warm-started: k-means of each level's features gives the codebook.

        Args:
            mode: `logits`, `latent` or `fixed`.
            seed: of the clustering.
            weights: how much each vertex's error matters; None is all alike.

        Note:
            The paper trains logits from random ones. From a warm start half as many steps reach the same quality in
            the prototype, and `latent` the same again in less time and memory.
        """
        if self.mode != "full" or mode == "full":
            raise ValueError(f"quantise from mode {self.mode} to {mode}, expected from full to another")
        books, labels = [], []
        starts = self.octree.vertex_starts
        for number in range(len(self.octree.levels)):
            mine = self.values[starts[number] : starts[number + 1]].float()
            weight = None if weights is None else weights[starts[number] : starts[number + 1]]
            book, label = cluster(mine, 2**self.bits, seed, weight)
            books.append(book)
            labels.append(label)
        features, index = self.values.detach().clone(), torch.cat(labels)
        self._set(self.codebook, torch.stack(books))
        self.mode = mode
        if mode == "latent":
            return
        if mode == "logits":
            distance = [
                torch.cdist(part, book).square() for part, book in zip(self._per_level(features), books, strict=True)
            ]
            scale = _WARM_SHARPNESS * features.var().clamp(min=1e-12)
            self._set(self.logits, -torch.cat(distance) / scale)
        else:
            self.indices = index.to(torch.uint8)
        self._set(self.values, features[:0])

    def _per_level(self, rows: Tensor) -> list[Tensor]:
        starts = self.octree.vertex_starts
        return [rows[starts[i] : starts[i + 1]] for i in range(len(self.octree.levels))]

    @staticmethod
    def _set(parameter: torch.nn.Parameter, value: Tensor) -> None:
        """Give a parameter other data, also of another shape, without it becoming another parameter."""
        # Whoever still holds the last step's loss keeps autograd's note of the old shape alive, and torch makes a new
        # one only where dtype or device change: so they do, for a moment.
        parameter.data = torch.empty(0, dtype=torch.float64, device=parameter.device)
        parameter.data = value.detach().to(parameter.device)
        parameter.grad = None

    @torch.no_grad()
    def restructure(self, octree: Octree) -> None:
        """Move to another octree: vertices that both have keep what they learned, others begin at random.

        The parameters stay the same objects, of other shapes: whoever optimises them has to forget what it knows.
        """
        rows = matching_rows(self.octree, octree.to(self.octree.device))
        known = rows >= 0

        def moved(old: Tensor) -> Tensor:
            fresh = torch.randn(octree.num_vertices, old.shape[1], device=old.device) * self.init_std
            return torch.where(known[:, None], old[rows.clamp(min=0)], fresh) if len(old) else fresh[:0]

        books = torch.randn(len(octree.levels), *self.codebook.shape[1:], device=self.codebook.device) * self.init_std
        for number, level in enumerate(octree.levels):
            if level in self.octree.levels and len(self.codebook):
                books[number] = self.codebook[self.octree.levels.index(level)]
        self._set(self.values, moved(self.values))
        self._set(self.logits, moved(self.logits))
        self._set(self.codebook, books if self.mode != "full" else books[:0])
        if len(self.indices):
            drawn = torch.randint(2**self.bits, rows.shape, device=rows.device)
            self.indices = torch.where(known, self.indices[rows.clamp(min=0)].long(), drawn).to(torch.uint8)
        self.octree, self.last_touched = octree, None

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        starts = [self.octree.coarsest, *self.octree.node_starts]
        destination[prefix + "octree_starts"] = torch.tensor(starts)
        destination[prefix + "octree_voxels"] = torch.from_numpy(np.concatenate(self.octree.voxels))
        destination[prefix + "mode"] = torch.tensor(list(self.mode.encode()), dtype=torch.uint8)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Take over the octree, the mode and all shapes of a checkpoint."""
        names = [prefix + name for name in ("octree_starts", "octree_voxels", "mode")]
        if all(name in state_dict for name in names):
            starts, voxels, mode = (state_dict.pop(name) for name in names)
            self.octree = octree_of(starts.tolist(), voxels.cpu().numpy()).to(self.octree.device)
            self.mode = bytes(mode.tolist()).decode()  # type: ignore[assignment]
            for name in ("values", "logits", "codebook"):
                self._set(getattr(self, name), state_dict[prefix + name])
            self.indices = state_dict[prefix + "indices"].to(self.indices.device)
            self.last_touched = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        result = super()._apply(fn, *args, **kwargs)
        self.octree.to(self.codebook.device)
        return result


def octree_of(starts: list[int], voxels: np.ndarray) -> Octree:
    """The octree that a checkpoint describes: coarsest level, first node of each level, all voxels.

    Raises:
        InputError: they describe none.
    """
    coarsest, bounds = starts[0], starts[1:]
    try:
        return Octree(coarsest, [voxels[a:b] for a, b in zip(bounds, bounds[1:], strict=False)])
    except ValueError as error:
        raise InputError(f"vqad checkpoint: {error}") from error


def cluster(
    points: Float[Tensor, "N k"], count: int, seed: int, weights: Float[Tensor, " N"] | None = None
) -> tuple[Float[Tensor, "count k"], Int[Tensor, " N"]]:
    """k-means of vectors, which may be fewer than `count`: the last codes then repeat the last vector."""
    book, labels = kmeans(points, min(count, len(points)), weights=weights, iters=15, seed=seed)
    missing = count - len(book)
    return (torch.cat([book, book[-1:].expand(missing, -1)]) if missing else book), labels
