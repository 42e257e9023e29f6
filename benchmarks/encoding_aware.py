"""What training through a format's quantisers is worth: the last stage of a LightGaussian run, twice.

    python benchmarks/encoding_aware.py --run RUN_FOLDER --output encoding_aware.json --steps 400

From the end of a run without an encoding, the scene is trained on for the same steps and at the same rates, once
without quantisers and once through those of each format. Each file is written, decoded, and measured on the held-out
test photos. Without quantisers in training the writer chooses its quantisers at the end, for the trained scene.
"""

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.engine.optimizers import Optimizers
from nerfstudio.utils.rich_utils import CONSOLE

from radcomp_plugins import compat
from radcomp_plugins.core.files import write_json
from radcomp_plugins.lightgaussian.asset import write_scene
from radcomp_plugins.splats.evaluate import held_out_views, quality
from radcomp_plugins.splats.fake_quantise import fake_quantiser
from radcomp_plugins.splats.formats.rcs import RcsSettings, write_rcs
from radcomp_plugins.splats.formats.registry import read_splats

CASES: tuple[tuple[Any, float], ...] = (("spz", 1.0), ("rcs", 2.0), ("rcs", 1.0), ("sog", 1.0), ("rcs", 3.0))
"""Format, and factor of its steps."""


@dataclass
class EncodingAware:
    """Measure formats with and without their quantisers in the last stage of training."""

    run: Path
    """Run folder of LightGaussian, trained to its end without an encoding."""
    output: Path
    """Report to write, JSON; files are written beside it."""
    steps: int = 400
    """Training steps."""
    encodings: tuple[Literal["sog", "spz", "rcs"], ...] = ("rcs", "spz", "sog")
    """Formats to measure."""

    def main(self) -> None:
        """Train, write, measure."""
        self.pipeline: Any = compat.load_run(self.run, test_mode="test")[1]
        self.start = copy.deepcopy(self.pipeline.model.state_dict())
        self.background = self.pipeline.model._get_background_color()
        self.views = held_out_views(self.pipeline.datamanager.fixed_indices_eval_dataloader, self.background)
        self.rows: list[dict[str, Any]] = []
        cases = [(encoding, coarse) for encoding, coarse in CASES if encoding in self.encodings]
        for encoding, coarse in cases:
            self.add("before", encoding, coarse)
        self.train("none", 1.0)
        self.add("without quantisers", "none", 1.0)
        for encoding, coarse in cases:
            self.add("without quantisers", encoding, coarse)
        for encoding, coarse in cases:
            self.train(encoding, coarse)
            self.add("through quantisers", encoding, coarse)

    def train(self, encoding: Any, coarse: float) -> None:
        """The last stage from the start."""
        pipeline, model = self.pipeline, self.pipeline.model
        model.load_state_dict(copy.deepcopy(self.start))
        pipeline.config.encoding, pipeline.config.encoding_coarse = encoding, coarse
        if encoding != "none":
            with torch.no_grad():
                pipeline._encode()
        optimizers = Optimizers(all_methods["lightgaussian-tiny"].optimizers, pipeline.get_param_groups())
        model.optimizers = optimizers.optimizers
        rates = {name: group.param_groups[0]["lr"] for name, group in optimizers.optimizers.items()}
        pipeline.datamanager.train_unseen_cameras = []
        pipeline.train()
        begun = time.process_time()
        for step in range(self.steps):
            model.step = step
            for name, optimizer in optimizers.optimizers.items():
                optimizer.param_groups[0]["lr"] = rates[name] * pipeline.config.lr_final_factor ** (step / self.steps)
            camera, batch = pipeline.datamanager.next_train(step)
            outputs = model(camera)
            losses = model.get_loss_dict(outputs, batch, model.get_metrics_dict(outputs, batch))
            optimizers.zero_grad_all()
            sum(losses.values()).backward()  # type: ignore[union-attr]
            optimizers.optimizer_step_all()
        self.seconds = time.process_time() - begun
        model.eval()

    @torch.no_grad()
    def add(self, training: str, encoding: Any, coarse: float) -> None:
        """Write the scene as it stands, decode and measure it."""
        model = self.pipeline.model
        path = self.output.parent / f"scene.{encoding}"
        if encoding == "none":
            decoded, size = model.gaussians(), None
        elif encoding == "rcs" and model.quantiser is None:
            # The same palette and steps that the quantisers in training have.
            quantiser, _ = fake_quantiser("rcs", model.gaussians(), **self.rcs_options(coarse))
            write_rcs(path, model.gaussians(), significance=model.weights(), overwrite=True, **quantiser.options())
            decoded, size = read_splats(path), path.stat().st_size
        else:
            path.unlink(missing_ok=True)
            write_scene(path.parent, model, [encoding])
            decoded, size = read_splats(path), path.stat().st_size
        row = {
            "training": training,
            "encoding": encoding,
            "coarse": coarse,
            "bytes": size,
            **quality(decoded, self.views, self.background),
            "seconds": getattr(self, "seconds", 0.0),
        }
        self.rows.append(row)
        CONSOLE.print(row)
        settings = {"run": str(self.run), "steps": self.steps, "views": len(self.views)}
        write_json(self.output, {"schema_version": 1, **settings, "rows": self.rows})

    def rcs_options(self, coarse: float) -> dict[str, Any]:
        """What the stage passes for .rcs."""
        model = self.pipeline.model
        return {"significance": model.weights(), "palette": model.palette(), "settings": RcsSettings().trained(coarse)}


if __name__ == "__main__":
    tyro.cli(EncodingAware).main()
