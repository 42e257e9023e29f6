"""Training memory and time of the codebook look-up: vertices looked up once, against the formulation of the paper.

    python benchmarks/vqad_memory.py --output benchmarks/results/vqad_memory.json

The naive way looks up the 2^b logits of all eight corners of all samples, takes their softmax, and multiplies with the
codebook as a broadcast, so that a tensor of samples x 8 x 2^b x k is made for each level; that is what the published
code does. Ours looks up each vertex of a batch once, by a matrix product. A third row is the mode without logits. Each
runs in a process of its own; memory is its largest resident size less what it had before the first step.
"""

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

Way = Literal["naive", "logits", "latent"]


@dataclass
class VqadMemory:
    """Measure memory and seconds per step of the look-up, forward and backward, with Adam's step."""

    output: Path | None = None
    """File for the result as JSON."""
    samples: int = 16384
    """Positions looked up in a step."""
    points: int = 30_000
    """Points on a sphere whose voxels make the octree, levels 4 to 7."""
    bits: tuple[int, ...] = (4, 6)
    """Bits per index to measure."""
    steps: int = 3
    """Timed steps, after one that is not; the fastest counts."""
    way: Way | None = None
    """Measure one way in this very process; for the script itself."""

    def main(self) -> None:
        """Measure each way in its own process, and print."""
        if self.way is not None:
            sys.stdout.write(json.dumps(measure(self.way, self.bits[0], self.samples, self.points, self.steps)) + "\n")
            return
        rows = [self.in_process(way, bits) for bits in self.bits for way in ("naive", "logits", "latent")]
        result = {"schema_version": 1, "samples": self.samples, "threads": 1, "rows": rows}
        text = json.dumps(result, indent=2)
        if self.output is not None:
            self.output.write_text(text + "\n", "utf8")
        sys.stdout.write(text + "\n")

    def in_process(self, way: Way, bits: int) -> dict[str, Any]:
        """One row, measured by another process."""
        command = [sys.executable, __file__, "--way", way, "--bits", str(bits), "--samples", str(self.samples)]
        command += ["--points", str(self.points), "--steps", str(self.steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.strip().splitlines()[-1])


def measure(way: Way, bits: int, samples: int, points: int, steps: int) -> dict[str, Any]:
    """Megabytes and seconds of one way."""
    from radcomp_plugins.core.octree import Octree, voxels_of_points
    from radcomp_plugins.vqad.encoding import VQADEncoding

    torch.set_num_threads(1)
    torch.manual_seed(0)
    shell = 0.5 + 0.35 * torch.nn.functional.normalize(torch.randn(points, 3), dim=-1)
    octree = Octree.from_finest(voxels_of_points(shell, 7), 7, 4)
    encoding = VQADEncoding(octree, 16, bits, mode="latent" if way == "latent" else "logits")
    optimizer = torch.optim.Adam([p for p in encoding.parameters() if p.numel()], lr=0.01)
    position = shell[torch.randint(len(shell), (samples,))]
    wanted = torch.randn(samples, 16)
    before, times = peak(), []
    for step in range(steps + 1):
        begun = time.perf_counter()
        found = naive(encoding, position) if way == "naive" else encoding(position)
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.mse_loss(found, wanted).backward()
        optimizer.step()
        if step:
            times.append(time.perf_counter() - begun)
    megabytes = (peak() - before) / 1e6
    return {"way": way, "bits": bits, "vertices": octree.num_vertices, "mb": megabytes, "seconds": min(times)}


def naive(encoding: Any, position: torch.Tensor) -> torch.Tensor:
    """Features of positions, with everything looked up for each corner of each sample."""
    from radcomp_plugins.core.octree_lookup import corner_weights, locate

    octree, total = encoding.octree, torch.zeros(len(position), encoding.features)
    nodes = locate(octree, position)
    for number in range(nodes.shape[1]):
        vertices, weights = corner_weights(octree, position, nodes[:, number], octree.coarsest + number)
        soft = encoding.logits[vertices.clamp(min=0).long()].softmax(dim=-1)
        hard = torch.nn.functional.one_hot(soft.argmax(dim=-1), soft.shape[-1]).to(soft)
        chosen = (hard - soft).detach() + soft
        features = (encoding.codebook[number] * chosen[..., None]).sum(dim=-2)
        total = total + (features * (weights * (vertices >= 0))[..., None]).sum(dim=1)
    return total


def peak() -> float:
    """Largest resident size of this process so far, bytes."""
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    tyro.cli(VqadMemory).main()
