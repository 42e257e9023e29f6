"""What a `.vqad` file costs and how fast it is read, beside packed bits and general-purpose compressors.

    python benchmarks/vqad_file.py ASSET_OR_FILE
    python benchmarks/vqad_file.py --made

For each level: bits per index packed, by the order-0 entropy, by gzip and LZMA of the packed bits and of whole bytes,
and as the file has it; then seconds to encode and decode the whole file, the process's own CPU time on one core. MB of
grid are those of the decoded float16 features, m k 2 bytes, which the paper's 20 MB are; vertices a second beside them.
`--made` takes a made-up scene of the paper's size instead: a shell at levels 5 to 8, whose indices follow a smooth
function with noise, so that only times mean anything.
"""

import json
import lzma
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from radcomp_plugins.cli.measure import processor_name
from radcomp_plugins.core import morton
from radcomp_plugins.errors import InputError
from radcomp_plugins.vqad.bitstream import decode_scene, encode_scene, read_scene, scene_file, sizes_of
from radcomp_plugins.vqad.scene import VqadDecoder, VqadLevel, VqadScene


@dataclass
class VqadFile:
    """Measure a VQ-AD file."""

    path: tyro.conf.Positional[Path | None] = None
    """A `.vqad` file or the folder of an asset."""
    made: bool = False
    """Measure a made-up scene of the paper's size."""
    bits: int = 6
    """Bits per index of the made-up scene."""
    repeats: int = 3
    """Times that encoding and decoding are measured, after one that is not counted; the fastest counts."""
    output: Path | None = None
    """File for the result as JSON."""

    def main(self) -> None:
        """Measure and print.

        Raises:
            InputError: neither a file nor --made, or both.
        """
        if (self.path is None) != self.made:
            raise InputError("vqad_file: give either a .vqad file or --made")
        scene = made_scene(self.bits) if self.path is None else read_scene(scene_file(self.path)).scene
        result = {"schema_version": 1, "processor": processor_name(), **measure(scene, max(1, self.repeats))}
        text = json.dumps(result, indent=2)
        if self.output is not None:
            self.output.write_text(text + "\n", "utf8")
        sys.stdout.write(text + "\n")


def measure(scene: VqadScene, repeats: int) -> dict[str, Any]:
    """Sizes by level and way of coding, and the fastest of the times."""
    data, encode_seconds = fastest(lambda: encode_scene(scene), repeats)
    decoded, decode_seconds = fastest(lambda: decode_scene(data), repeats)
    levels = [{**size, **alternatives(level)} for level, size in zip(scene.levels, sizes_of(data, scene), strict=True)]
    vertices = sum(len(level.indices) for level in scene.levels)
    grid = 2 * scene.num_features * vertices
    packed = sum(level["packed_bytes"] for level in levels)
    coded = sum(level["index_bytes"] for level in levels)
    return {
        "bytes": len(data),
        "head_bytes": decoded.chunks[0].end,
        "vertices": vertices,
        "grid_mb": grid / 1e6,
        "packed_index_bytes": packed,
        "coded_index_bytes": coded,
        "saved_over_packed": 1.0 - coded / packed,
        "encode_seconds": encode_seconds,
        "decode_seconds": decode_seconds,
        "decoded_grid_mb_per_second": grid / 1e6 / decode_seconds,
        "decoded_vertices_per_second": vertices / decode_seconds,
        "levels": levels,
    }


def alternatives(level: VqadLevel) -> dict[str, float]:
    """Bytes of a level's indices by other ways of coding."""
    bits = np.unpackbits(level.indices[:, None], axis=1)[:, 8 - level.bits :]
    packed, whole = np.packbits(bits).tobytes(), level.indices.tobytes()
    share = np.bincount(level.indices) / len(level.indices)
    entropy = -(share[share > 0] * np.log2(share[share > 0])).sum()
    return {
        "packed_bytes": len(packed),
        "order0_bytes": float(entropy * len(level.indices) / 8),
        "gzip_bytes": min(len(zlib.compress(packed, 9)), len(zlib.compress(whole, 9))),
        "lzma_bytes": min(len(lzma.compress(packed)), len(lzma.compress(whole))),
    }


def fastest(work: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """What `work` gives, and the least CPU seconds it took; everything is one thread's."""
    result, times = work(), []
    for _ in range(repeats):
        begun = time.process_time()
        result = work()
        times.append(time.process_time() - begun)
    return result, min(times)


def made_scene(bits: int, levels: tuple[int, ...] = (5, 6, 7, 8), num_features: int = 16) -> VqadScene:
    """A shell like an object's surface, made up."""
    rng = np.random.default_rng(0)
    direction = rng.normal(size=(6_000_000, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    radius = 0.43 + 0.03 * np.sin(9.0 * direction[:, :1]) + 0.004 * rng.normal(size=(len(direction), 1))
    points = (0.5 + radius * direction).clip(0.0, 0.999)
    finest = np.unique(morton.encode((points * 2 ** levels[-1]).astype(np.int64)))
    made = []
    for level in levels:
        voxels = np.unique(finest >> 3 * (levels[-1] - level))
        place = morton.decode(morton.voxel_vertices(voxels, level)) / 2**level
        smooth = np.sin(place @ rng.normal(size=(3, 3)) * 8.0).sum(axis=1) / 6.0 + 0.5
        noisy = (smooth + 0.05 * rng.normal(size=len(smooth))).clip(0, 1)
        indices = (noisy * (2**bits - 1)).round().astype(np.uint8)
        made.append(
            VqadLevel(level, voxels, indices, rng.normal(size=(2**bits, num_features)).astype(np.float16), bits)
        )
    shapes = [(128, num_features + 27), (4, 128)]
    decoder = VqadDecoder(
        weights=[(0.2 * rng.normal(size=shape)).astype(np.float16) for shape in shapes],
        biases=[np.zeros(shape[0], np.float16) for shape in shapes],
    )
    return VqadScene(box=np.array([[-1.0] * 3, [1.0] * 3]), levels=made, decoder=decoder)


if __name__ == "__main__":
    tyro.cli(VqadFile).main()
