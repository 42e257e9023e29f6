"""Two processes against one: the launcher of ns-train on the CPU, and steps whose gradients are averaged."""

import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nerfstudio.scripts import train
from two_processes import (
    make_case,
    student_config,
    take_steps,
    train_student,
    train_student_alone,
    train_tiny_field,
)

from radcomp_plugins import compat
from radcomp_plugins.distributed import distributed_step


def launch_two(function: Any, config: Any) -> None:
    """Two processes of nerfstudio's own launcher, as ns-train --machine.num-devices 2 starts them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "_distributed_worker", train._distributed_worker)
        compat.use_our_distributed_worker()
        train.launch(function, num_devices_per_machine=2, device_type="cpu", config=config)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes saved."""
    folder = tmp_path_factory.mktemp("ranks")
    launch_two(train_tiny_field, SimpleNamespace(folder=folder, logging=SimpleNamespace(profiler="none")))
    return [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_one_process_gets_its_own_function_back():
    field, _ = make_case(0)
    compute = field.losses
    assert distributed_step(field, compute, 1) is compute


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_all_the_rays(two_ranks):
    field, batch = make_case(seed=0)  # rank 0's parameters are everyone's
    alone = take_steps(field, field.losses, batch)
    for rank in two_ranks:
        for expected, shown in zip(alone["losses"], rank["losses"], strict=True):
            assert shown == pytest.approx(expected, rel=1e-6)
        assert list(rank["losses"][0]) == ["rgb", "decay"]
        for name in ("gradients", "parameters"):
            for key, value in alone[name].items():
                if key == "unused" and name == "gradients":
                    continue
                torch.testing.assert_close(rank[name][key], value, rtol=1e-5, atol=1e-7)
    assert rank["gradients"]["unused"] is None or not rank["gradients"]["unused"].any()


@pytest.mark.slow
def test_stock_pipelines_wrap_their_models_on_the_cpu(two_ranks):
    for rank in two_ranks:
        assert rank["stock"].tolist() == [[0.5, 0.5]]


def test_ns_train_gets_our_worker_under_either_name(monkeypatch):
    monkeypatch.setattr(train, "_distributed_worker", None)
    compat.use_our_distributed_worker()
    assert train._distributed_worker is compat.distributed_worker
    main = types.ModuleType("__main__")
    main.__spec__ = SimpleNamespace(name="nerfstudio.scripts.train")  # type: ignore[assignment]
    main._distributed_worker = None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "__main__", main)
    compat.use_our_distributed_worker()
    assert main._distributed_worker is compat.distributed_worker  # type: ignore[attr-defined]


def test_with_cuda_it_is_upstreams_own_worker(monkeypatch):
    called = []
    monkeypatch.setattr(train, "_distributed_worker", lambda *args: called.append(args) or "done")
    arguments = (0, print, 2, 2, 0, "tcp://x", None, train.DEFAULT_TIMEOUT, "cuda")
    assert compat.distributed_worker(*arguments) == "done"
    assert called == [arguments]


@pytest.mark.slow
def test_a_student_of_two_processes_is_that_of_one_with_all_their_rays(nerfacto_run, tmp_path):
    config = student_config(tmp_path / "two", nerfacto_run)
    config.set_timestamp()
    config.save_config()
    launch_two(train_student, config)
    run = config.get_base_dir()
    ranks = [torch.load(run / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    compat.forget_writers()
    alone = train_student_alone(student_config(tmp_path / "one", nerfacto_run))
    compat.forget_writers()
    assert "consistency_loss" in alone[0]["losses"]
    for rank in ranks:
        for step, expected in zip(rank["steps"], alone, strict=True):
            assert step["losses"] == pytest.approx(expected["losses"], rel=1e-4)
            for name, gradient in expected["gradients"].items():
                torch.testing.assert_close(step["gradients"][name], gradient, rtol=1e-3, atol=1e-6)
    for name, value in ranks[0]["parameters"].items():
        assert torch.equal(ranks[1]["parameters"][name], value), name
    # The checkpoint is like one of a single process.
    _, pipeline, path, _ = compat.load_run(run)
    assert [file.name for file in path.parent.iterdir()] == ["step-000000002.ckpt"]
    for name, value in pipeline.model.named_parameters():
        assert torch.equal(value, ranks[0]["parameters"][name]), name
