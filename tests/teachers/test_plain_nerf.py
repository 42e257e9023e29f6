"""Plain NeRFs: three families against their formulas, their frame, their rays, and files of every kind."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from kilo_teachers import yenchen_tensors
from ray_teachers import rays_around

from radcomp_plugins.errors import InputError
from radcomp_plugins.teachers import load_plain
from radcomp_plugins.teachers.load_plain import load_plain_nerf
from radcomp_plugins.teachers.load_points import load_point_teacher
from radcomp_plugins.teachers.plain_nerf import PlainMlp, PlainNerfTeacher, encode, sample_pdf
from radcomp_plugins.teachers.points import PointTeacher
from radcomp_plugins.teachers.rays import RayTeacher

Tensors = dict[str, torch.Tensor]


def krrish_tensors(width: int = 16, skip: bool = False) -> Tensors:
    g = torch.Generator().manual_seed(1)
    sizes = {"layer1": (63, width), "fc_feat": (width, width), "fc_alpha": (width, 1)}
    sizes |= {f"layers_xyz.{i}": (width + 63 if skip and i == 2 else width, width) for i in range(4)}
    sizes |= {"layers_dir.0": (width + 27, 8), "fc_rgb": (8, 3)}
    return drawn(sizes, g)


def nerf_pl_tensors(width: int = 16) -> Tensors:
    sizes = {f"xyz_encoding_{i + 1}.0": (63 if i == 0 else width + 63 if i == 2 else width, width) for i in range(4)}
    sizes |= {"xyz_encoding_final": (width, width), "sigma": (width, 1), "dir_encoding.0": (width + 27, 8)}
    return drawn({**sizes, "rgb.0": (8, 3)}, torch.Generator().manual_seed(2))


def drawn(sizes: dict[str, tuple[int, int]], g: torch.Generator) -> Tensors:
    tensors = {}
    for name, (inputs, outputs) in sizes.items():
        tensors[f"{name}.weight"] = torch.randn(outputs, inputs, generator=g) * (2 / inputs) ** 0.5
        tensors[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=g)
    return tensors


def points(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    towards = torch.nn.functional.normalize(torch.randn(count, 3, generator=g), dim=-1)
    return torch.randn(count, 3, generator=g), towards


def linear(tensors: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ tensors[f"{name}.weight"].double().T + tensors[f"{name}.bias"].double()


def slow_yenchen(tensors: Tensors, p: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x, v = encode(p.double(), 10), encode(d.double(), 4)
    h = x
    for i in range(8):
        h = linear(tensors, f"pts_linears.{i}", h).relu()
        if i == 4:
            h = torch.cat([x, h], -1)
    feature = linear(tensors, "feature_linear", h)
    seen = linear(tensors, "views_linears.0", torch.cat([feature, v], -1)).relu()
    return linear(tensors, "alpha_linear", h)[:, 0].relu(), linear(tensors, "rgb_linear", seen).sigmoid()


def slow_krrish(tensors: Tensors, p: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x, v = encode(p.double(), 10), encode(d.double(), 4)
    h = linear(tensors, "layer1", x)
    for i in range(4):
        if tensors[f"layers_xyz.{i}.weight"].shape[1] > h.shape[1]:
            h = torch.cat([h, x], -1)
        h = linear(tensors, f"layers_xyz.{i}", h).relu()
    feature = linear(tensors, "fc_feat", h).relu()
    seen = linear(tensors, "layers_dir.0", torch.cat([feature, v], -1)).relu()
    return linear(tensors, "fc_alpha", h)[:, 0].relu(), linear(tensors, "fc_rgb", seen).sigmoid()


def slow_nerf_pl(tensors: Tensors, p: torch.Tensor, d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x, v = encode(p.double(), 10), encode(d.double(), 4)
    h = x
    for i in range(4):
        h = linear(tensors, f"xyz_encoding_{i + 1}.0", torch.cat([x, h], -1) if i == 2 else h).relu()
    final = linear(tensors, "xyz_encoding_final", h)
    seen = linear(tensors, "dir_encoding.0", torch.cat([final, v], -1)).relu()
    return linear(tensors, "sigma", h)[:, 0].relu(), linear(tensors, "rgb.0", seen).sigmoid()


@pytest.mark.parametrize(
    ("tensors", "slow"),
    [
        (yenchen_tensors(), slow_yenchen),
        (krrish_tensors(), slow_krrish),
        (krrish_tensors(skip=True), slow_krrish),
        (nerf_pl_tensors(), slow_nerf_pl),
    ],
)
def test_families_compute_what_their_code_bases_do(tensors: Tensors, slow: Callable) -> None:
    network = PlainMlp(tensors, "x").requires_grad_(False)
    p, d = points()
    density, rgb = network(p, d)
    truth = slow(tensors, p, d)
    assert (truth[0] > 0).float().mean() > 0.01
    assert torch.allclose(density.double(), truth[0], atol=1e-4) and torch.allclose(rgb.double(), truth[1], atol=1e-5)


def test_encoding_is_x_then_sines_and_cosines() -> None:
    x = torch.tensor([[0.1, 0.2, 0.3]])
    truth = torch.cat([x, x.sin(), x.cos(), (2 * x).sin(), (2 * x).cos()], -1)
    assert torch.allclose(encode(x, 2), truth) and torch.equal(encode(x, 0), x)


def make(seed: int = 0) -> PlainNerfTeacher:
    coarse, fine = (PlainMlp(yenchen_tensors(seed=seed + i), "x") for i in range(2))
    return PlainNerfTeacher(coarse, fine, samples=(16, 12))


def test_points_are_answered_by_the_fine_network() -> None:
    teacher = make()
    assert isinstance(teacher, PointTeacher) and isinstance(teacher, RayTeacher)
    p, d = points()
    said, (density, rgb) = teacher.query_points(p, d), teacher.fine(p, d)
    assert torch.equal(said.density, density) and torch.equal(said.rgb, rgb) and teacher.trained_from == 2.0


def test_frame_of_the_dataset() -> None:
    teacher, moved = make(), make()
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    shift, scale = torch.tensor([0.5, -1.0, 2.0]), 0.4
    moved.place(torch.cat([q, shift[:, None]], dim=1), scale)
    p, d = points()
    there, seen = scale * (p @ q.T + shift), d @ q.T
    said, truth = moved.query_points(there, seen), teacher.query_points(p, d)
    # Lengths are 0.4 of what they were, so density per length is 2.5 times.
    assert torch.allclose(said.density, truth.density / scale, rtol=1e-3, atol=1e-3)
    assert torch.allclose(said.rgb, truth.rgb, atol=2e-3) and moved.trained_from == pytest.approx(0.8)
    rays, placed = rays_around(50), rays_around(50)
    placed.origins, placed.directions = scale * (rays.origins @ q.T + shift), rays.directions @ q.T
    a, b = teacher.query_rays(rays), moved.query_rays(placed)
    assert torch.allclose(a.rgb, b.rgb, atol=5e-3) and torch.allclose(a.edges * scale, b.edges, atol=1e-2)


def test_rays_are_quadrature_of_points() -> None:
    teacher, rays = make(), rays_around(60)
    taught = teacher.query_rays(rays)
    assert taught.edges.shape == (60, 29) and (taught.edges.diff(dim=-1) >= 0).all()
    at = taught.edges[:, :-1]
    p = rays.origins[:, None] + at[..., None] * rays.directions[:, None]
    said = teacher.query_points(p.reshape(-1, 3), rays.directions[:, None].expand_as(p).reshape(-1, 3))
    depth = said.density.view(at.shape) * taught.edges.diff(dim=-1)
    weights = torch.exp(-(depth.cumsum(-1) - depth)) * -torch.expm1(-depth)
    assert torch.allclose(weights, taught.weights, atol=1e-3)
    assert torch.allclose((weights[..., None] * said.rgb.view(p.shape)).sum(1), taught.rgb, atol=1e-3)
    assert (taught.weights.sum(-1) <= 1 + 1e-5).all()
    assert not torch.equal(teacher.query_rays(rays, jitter=True).edges, taught.edges)
    assert torch.equal(teacher.query_rays(rays).edges, taught.edges)


def test_finer_samples_lie_where_the_weight_is() -> None:
    edges, weights = torch.linspace(0, 1, 11)[None], torch.zeros(1, 10)
    weights[0, 3] = 1.0
    drawn_at = sample_pdf(edges, weights, 100)
    assert ((drawn_at > 0.299) & (drawn_at < 0.401)).float().mean() > 0.95 and (drawn_at.diff(dim=-1) >= 0).all()
    even = sample_pdf(edges, torch.ones(1, 10), 11)
    assert torch.allclose(even, edges, atol=1e-5)


# Files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["npz", "tar", "krrish", "lightning", "single", "wrapped"])
def test_files_of_every_kind(tmp_path: Path, kind: str) -> None:
    coarse, fine = yenchen_tensors(seed=1), yenchen_tensors(seed=2)
    path = tmp_path / {"npz": "t.npz", "tar": "200000.tar", "lightning": "epoch.ckpt"}.get(kind, "t.pth")
    if kind == "npz":
        both = {f"coarse.{k}": v for k, v in coarse.items()} | {f"fine.{k}": v for k, v in fine.items()}
        np.savez(path, **{k: v.numpy() for k, v in both.items()})
    elif kind == "tar":
        torch.save({"global_step": 3, "network_fn_state_dict": coarse, "network_fine_state_dict": fine}, path)
    elif kind == "krrish":
        torch.save({"model_coarse_state_dict": coarse, "model_fine_state_dict": fine, "psnr": np.float64(3)}, path)
    elif kind == "lightning":
        both = {f"nerf_coarse.{k}": v for k, v in coarse.items()} | {f"nerf_fine.{k}": v for k, v in fine.items()}
        torch.save({"state_dict": both}, path)
    elif kind == "single":
        coarse = fine
        torch.save(fine, path)
    else:
        coarse = fine
        torch.save({"network_fn_state_dict": {f"module.{k}": v for k, v in fine.items()},
                    "network_fine_state_dict": None}, path)  # fmt: skip
    teacher = load_point_teacher(path)
    assert isinstance(teacher, PlainNerfTeacher)
    p, d = points()
    for network, tensors in ((teacher.coarse, coarse), (teacher.fine, fine)):
        assert torch.equal(network(p, d)[0], PlainMlp(tensors, "x")(p, d)[0].detach())


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not readable"),
        (b"PK\x03\x04 no archive", "not readable"),
        ({"a": 1}, "holds a"),
        ([1, 2], "holds a list"),
        ({"network_fn_state_dict": {"x.weight": torch.zeros(2, 2)}}, "of no known NeRF"),
        (Evil(), "without running its code"),
    ],
)
def test_files_that_are_no_checkpoint(
    tmp_path: Path, content: object, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(InputError, match=told) as error:
        load_plain_nerf(path)
    assert "\n" not in str(error.value) and "never run" not in capsys.readouterr().out


def test_npz_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(b"PK nothing")
    with pytest.raises(InputError, match="not a readable .npz"):
        load_plain_nerf(path)
    np.savez(path, **{"coarse.a": np.array([Evil()], dtype=object)})
    with pytest.raises(InputError, match="not a readable .npz"):
        load_plain_nerf(path)


def test_files_too_large_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.zeros(10**6))
    monkeypatch.setattr(load_plain, "MAX_BYTES", 10**5)
    assert path.stat().st_size < 10**5
    with pytest.raises(InputError, match="unpacks to"):
        load_plain_nerf(path)
    monkeypatch.setattr(load_plain, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="expected at most 100"):
        load_plain_nerf(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("rgb_linear.bias"), "rgb_linear has no weight or no bias"),
        (lambda t: t.update({"rgb_linear.weight": torch.zeros(4, 16), "rgb_linear.bias": torch.zeros(4)}), "3 outputs"),
        (lambda t: t.update({"alpha_linear.weight": torch.zeros(1, 31)}), "alpha_linear has 31 inputs"),
        (lambda t: t.update({"pts_linears.3.weight": torch.zeros(32, 40)}), "hidden layer 3 has 40 inputs"),
        (lambda t: t.update({"pts_linears.0.weight": torch.zeros(32, 64)}), "64 channels of encoded positions"),
        (lambda t: t.update({"pts_linears.0.bias": torch.zeros(31)}), "weight of shape"),
        (lambda t: t.update({"pts_linears.1.weight": torch.full((32, 32), torch.nan)}), "NaN"),
        (lambda t: t.update({"pts_linears.1.weight": torch.zeros(32, 32, dtype=torch.int64)}), "real numbers"),
        (lambda t: [t.pop(k) for k in list(t) if k.startswith("views")], "without viewing directions"),
        (lambda t: t.clear(), "no known NeRF"),
    ],
)
def test_layers_that_do_not_fit_are_told(change: Callable[[Tensors], object], told: str) -> None:
    tensors = yenchen_tensors()
    change(tensors)
    with pytest.raises(InputError, match=told) as error:
        PlainMlp(tensors, "file")
    assert "\n" not in str(error.value) and str(error.value).startswith("file")


def test_the_real_chair(real_data: Callable[[str], Path]) -> None:
    teacher = load_point_teacher(real_data("nerf_pytorch_chair_teacher") / "weights.npz")
    assert isinstance(teacher, PlainNerfTeacher) and teacher.fine.family.name == "krrish94/nerf-pytorch"
    assert (teacher.fine.position_octaves, teacher.fine.direction_octaves) == (10, 4)
    p, d = points(2000)
    said = teacher.query_points(p * 0.2, d)
    # The seat is solid, the air around it is not.
    assert 0.05 < (said.density > 10).float().mean() < 0.95
