"""The order of LightGaussian's stages as a function of the step, so that a run can stop and resume anywhere."""

from dataclasses import dataclass
from typing import Literal

from radcomp_plugins.errors import InputError
from radcomp_plugins.lightgaussian.config import LightGaussianPipelineConfig

Action = Literal["prune", "distil", "quantise", "encode"]


@dataclass(frozen=True)
class Stage:
    """One change of the scene, and the training steps that recover from it.

    Attributes:
        name: as it stands in reports and logs.
        action: what happens before the first step.
        start: first training step.
        steps: number of training steps.
        keep: share of the Gaussians that a pruning keeps, in (0, 1].
    """

    name: str
    action: Action
    start: int
    steps: int
    keep: float = 1.0

    @property
    def end(self) -> int:
        """The step after the last one."""
        return self.start + self.steps

    def progress(self, step: int) -> float:
        """How far the stage is at a step, 0 at its start and 1 at its end."""
        return min(max((step - self.start) / max(self.steps, 1), 0.0), 1.0)


def check(config: LightGaussianPipelineConfig) -> None:
    """Check the ranges of the fields.

    Raises:
        InputError: a field is out of its range; the message names it, its value and the range.
    """
    ranges = {
        "prune_ratio": (0.0, 0.9999),
        "pseudo_view_share": (0.0, 1.0),
        "recovery_pseudo_view_share": (0.0, 1.0),
        "vq_ratio": (0.0, 1.0),
        "vq_decay": (0.0, 0.9999),
        "lr_final_factor": (1e-6, 1.0),
        "pseudo_view_sigma": (0.0, float("inf")),
        "sh_degree": (0, 3),
        "vq_codebook_size": (1, 65_536),
        "encoding_coarse": (0.25, 8.0),
        "vq_batch_size": (1, float("inf")),
    }
    counts = ("prune_rounds", "co_adaptation_steps", "distillation_steps", "vq_iterations", "vq_finetune_steps",
              "encoding_steps")  # fmt: skip
    ranges.update(dict.fromkeys(counts, (0, float("inf"))))
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise InputError(f"{name}: got {value}, expected a value from {low} to {high}")


def plan(config: LightGaussianPipelineConfig, teacher_sh_degree: int) -> tuple[Stage, ...]:
    """The stages of a run in their order; a stage with nothing to do is left out.

    Args:
        config: the pipeline's config.
        teacher_sh_degree: SH degree the scene comes with.

    Raises:
        InputError: a field is out of its range, or there is nothing to train.
    """
    check(config)
    stages: list[Stage] = []

    def add(name: str, action: Action, steps: int, keep: float = 1.0) -> None:
        stages.append(Stage(name, action, stages[-1].end if stages else 0, steps, keep))

    rounds = config.prune_rounds if config.prune_ratio > 0 else 0
    verb = "merge" if config.reduction == "merge" else "prune"
    for index in range(rounds):
        name = verb if rounds == 1 else f"{verb} {index + 1}/{rounds}"
        add(name, "prune", config.co_adaptation_steps, keep=(1 - config.prune_ratio) ** (1 / rounds))
    if config.sh_degree < teacher_sh_degree:
        add(f"SH {teacher_sh_degree} to {config.sh_degree}", "distil", config.distillation_steps)
    if config.vq_ratio > 0 and min(config.sh_degree, teacher_sh_degree) > 0:
        add("quantise", "quantise", config.vq_finetune_steps)
    if config.encoding != "none":
        add(f"encode as .{config.encoding}", "encode", config.encoding_steps)
    if total_steps(tuple(stages)) == 0:
        raise InputError("lightgaussian: no stage has a training step; raise one of the *_steps fields")
    return tuple(stages)


def total_steps(stages: tuple[Stage, ...]) -> int:
    """Number of training steps of all stages."""
    return stages[-1].end if stages else 0


def starting_at(stages: tuple[Stage, ...], step: int) -> tuple[Stage, ...]:
    """The stages whose action is due before a step: more than one where a stage has no training steps."""
    return tuple(stage for stage in stages if stage.start == step)


def stage_at(stages: tuple[Stage, ...], step: int) -> Stage | None:
    """The stage that trains at a step; None beyond the last."""
    for stage in stages:
        if stage.start <= step < stage.end:
            return stage
    return None
