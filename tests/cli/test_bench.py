"""radcomp bench: it measures what it says, and refuses what it cannot."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
from baked_scenes import toy_scene

from radcomp_plugins.cli.main import run
from radcomp_plugins.errors import InputError
from radcomp_plugins.smerf.formats.smerf import write_smerf
from radcomp_plugins.teachers import load_rays


def test_rasterizer_prints_both_times(capsys):
    run(
        ["bench", "rasterizer", "--num-gaussians", "200", "--size", "24", "--repeats", "3", "--device", "cpu", "--json"]
    )
    result = json.loads(capsys.readouterr().out)
    assert result["num_gaussians"] == 200 and result["device"] == "cpu" and result["threads"] >= 1
    for name in ("forward", "forward_backward"):
        assert 0 < result[name]["min_ms"] <= result[name]["median_ms"]


def test_wrong_numbers_are_refused():
    with pytest.raises(InputError, match="at least 1"):
        run(["bench", "rasterizer", "--size", "0"])


@pytest.fixture(scope="module")
def toy():
    return toy_scene(32, 8, K=1)


def test_baked_frames_beside_a_teachers(toy, tmp_path, monkeypatch, capsys):
    write_smerf(tmp_path / "asset", toy)
    asked = []

    def query_rays(bundle, *, jitter=False):
        asked.append(bundle)
        return SimpleNamespace(rgb=torch.zeros(len(bundle), 3), weights=torch.zeros(len(bundle), 4))

    teacher = SimpleNamespace(query_rays=query_rays, background=torch.ones(3))
    monkeypatch.setattr(load_rays, "load_ray_teacher", lambda path, device: teacher)
    sizes = ["--size", "12", "--repeats", "2", "--device", "cpu", "--json"]
    run(["bench", "baked", "--asset", str(tmp_path / "asset"), "--teacher", "somewhere", *sizes])
    result = json.loads(capsys.readouterr().out)
    assert result["poses"] == 3 and result["submodels"] == 1 and 0 < result["baked_min_ms"] <= result["baked_ms"]
    assert result["ratio"] == pytest.approx(result["teacher_ms"] / result["baked_ms"])
    # One pose in each of three rounds, seen from where the camera is in the scene's frame.
    assert len(asked) == 3 and len(asked[0]) == 144
    frame = toy.test_frames[0].c2w[:, 3]
    origin = asked[0].origins[0].double().numpy()
    assert toy.layout.scene_to_unit[:, :3] @ origin + toy.layout.scene_to_unit[:, 3] == pytest.approx(frame, abs=1e-5)


def test_baked_frames_need_poses(toy, tmp_path):
    write_smerf(tmp_path / "asset", dataclasses.replace(toy, test_frames=[]))
    with pytest.raises(InputError, match="lists no pose"):
        run(["bench", "baked", "--asset", str(tmp_path / "asset")])
    with pytest.raises(InputError, match="at least 1"):
        run(["bench", "baked", "--asset", str(tmp_path / "asset"), "--poses", "0"])
    with pytest.raises(InputError, match="no baked scene"):
        run(["bench", "baked", "--asset", str(tmp_path)])


def test_hashgrid_compares_with_torch_in_both_ways(capsys, monkeypatch):
    from radcomp_plugins.cli import bench_hashgrid

    monkeypatch.setattr(bench_hashgrid, "CASES", ((2, 8, 300), (2, 8, 400), (9, 9, 10**9)))
    run(["bench", "hashgrid", "--num-rays", "32", "--repeats", "2", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert [case["points"] for case in result["encoding"]] == [300, 400], "larger cases are left out"
    for case in result["encoding"]:
        assert all(case[prefix + name] > 0 for prefix in ("", "torch_") for name in ("forward", "backward"))
    training = result["training"]
    assert training["ratio"] == pytest.approx(training["rays_per_second"] / training["torch_rays_per_second"])
    with pytest.raises(InputError, match="at least 1"):
        run(["bench", "hashgrid", "--num-rays", "0"])


def test_hashgrid_trains_nerfacto_itself_on_torch_and_ours_on_the_kernels():
    from nerfstudio.models.nerfacto import NerfactoModel

    from radcomp_plugins.cli.bench_hashgrid import nerfacto
    from radcomp_plugins.teachers.hash_encoding import CpuTwinHashEncoding

    stock, ours = nerfacto(stock=True), nerfacto(stock=False)
    assert type(stock) is NerfactoModel and not any(isinstance(m, CpuTwinHashEncoding) for m in stock.modules())
    assert sum(isinstance(m, CpuTwinHashEncoding) for m in ours.modules()) == 3
    shapes = [[tuple(p.shape) for p in model.parameters()] for model in (stock, ours)]
    assert shapes[0] == shapes[1] and stock.proposal_sampler.num_nerf_samples_per_ray == 20
