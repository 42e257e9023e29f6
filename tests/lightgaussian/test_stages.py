"""The order of the stages as a function of the step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from radcomp_plugins.errors import InputError
from radcomp_plugins.lightgaussian.config import LightGaussianPipelineConfig
from radcomp_plugins.lightgaussian.stages import Stage, check, plan, stage_at, starting_at, total_steps


def config(**fields) -> LightGaussianPipelineConfig:
    steps = {"prune_rounds": 2, "co_adaptation_steps": 10, "distillation_steps": 20, "vq_finetune_steps": 30}
    return LightGaussianPipelineConfig(**{**steps, **fields})


def names(**fields) -> list[str]:
    return [stage.name for stage in plan(config(**fields), 3)]


def test_stages_follow_each_other_without_gaps():
    stages = plan(config(), 3)
    assert [(s.name, s.action, s.start, s.end) for s in stages] == [
        ("prune 1/2", "prune", 0, 10),
        ("prune 2/2", "prune", 10, 20),
        ("SH 3 to 2", "distil", 20, 40),
        ("quantise", "quantise", 40, 70),
    ]
    assert total_steps(stages) == 70


@given(rounds=st.integers(1, 6), ratio=st.floats(0.01, 0.99))
def test_rounds_together_prune_the_ratio(rounds, ratio):
    stages = plan(config(prune_rounds=rounds, prune_ratio=ratio), 3)
    kept = 1.0
    for stage in stages:
        assert 0 < stage.keep <= 1
        kept *= stage.keep
    assert kept == pytest.approx(1 - ratio)
    assert sum(stage.action == "prune" for stage in stages) == rounds


def test_a_format_is_trained_through_last():
    stages = plan(config(encoding="spz", encoding_steps=7), 3)
    assert (stages[-1].name, stages[-1].action, stages[-1].start, stages[-1].end) == (
        "encode as .spz",
        "encode",
        70,
        77,
    )


def test_one_round_is_not_numbered():
    assert names(prune_rounds=1)[0] == "prune"
    assert names(prune_rounds=1, reduction="merge")[0] == "merge"


def test_what_has_nothing_to_do_is_left_out():
    assert names(prune_rounds=0) == names(prune_ratio=0.0) == ["SH 3 to 2", "quantise"]
    assert names(sh_degree=3) == ["prune 1/2", "prune 2/2", "quantise"]
    assert names(vq_ratio=0.0) == ["prune 1/2", "prune 2/2", "SH 3 to 2"]
    # Without SH above degree 0 there is nothing to quantise.
    assert names(sh_degree=0) == ["prune 1/2", "prune 2/2", "SH 3 to 0"]
    assert [s.name for s in plan(config(), 0)] == ["prune 1/2", "prune 2/2"]
    # A teacher below the degree asked for keeps its own.
    assert [s.name for s in plan(config(sh_degree=2), 1)] == ["prune 1/2", "prune 2/2", "quantise"]


@given(
    counts=st.lists(st.integers(0, 4), min_size=3, max_size=3).filter(any),
    rounds=st.integers(1, 3),
)
def test_every_step_has_one_stage_and_every_action_its_turn(counts, rounds):
    adapt, distil, tune = counts
    fields = {"co_adaptation_steps": adapt, "distillation_steps": distil, "vq_finetune_steps": tune}
    stages = plan(config(prune_rounds=rounds, **fields), 3)
    total = rounds * adapt + distil + tune
    assert total_steps(stages) == total
    for step in range(total):
        training = [stage for stage in stages if stage.start <= step < stage.end]
        assert [stage_at(stages, step)] == training
    assert stage_at(stages, total) is None
    begun = [stage for step in range(total + 1) for stage in starting_at(stages, step)]
    assert begun == list(stages)


def test_progress_runs_from_0_to_1_and_no_further():
    stage = Stage("prune", "prune", start=10, steps=4)
    assert [stage.progress(step) for step in (9, 10, 12, 14, 20)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert Stage("quantise", "quantise", start=10, steps=0).progress(10) == 0.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prune_ratio", 1.0),
        ("prune_ratio", -0.1),
        ("prune_ratio", float("nan")),
        ("prune_rounds", -1),
        ("co_adaptation_steps", -5),
        ("sh_degree", 4),
        ("pseudo_view_share", 1.5),
        ("pseudo_view_sigma", -1.0),
        ("vq_ratio", 1.01),
        ("vq_codebook_size", 0),
        ("vq_codebook_size", 65_537),
        ("vq_batch_size", 0),
        ("vq_decay", 1.0),
        ("lr_final_factor", 0.0),
        ("encoding_coarse", 9.0),
        ("recovery_pseudo_view_share", 1.1),
        ("encoding_steps", -1),
    ],
)
def test_bad_values_are_named_with_their_range(field, value):
    with pytest.raises(InputError, match=rf"^{field}: got {value}, expected a value from \S+ to \S+$"):
        check(config(**{field: value}))


def test_nothing_to_train_is_said():
    with pytest.raises(InputError, match="no stage has a training step"):
        plan(config(co_adaptation_steps=0, distillation_steps=0, vq_finetune_steps=0), 3)
    with pytest.raises(InputError, match="no stage has a training step"):
        plan(config(prune_rounds=0, sh_degree=3, vq_ratio=0.0), 3)
