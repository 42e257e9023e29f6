"""Splat .ply files: exact round trips, every layout in the field, and hostile files refused in one line."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.ply import INFINITE_LOGIT, ply_property_names, read_ply, write_ply
from radcomp_plugins.splats.gaussians import SH_C0, Gaussians

DATA = Path(__file__).resolve().parents[2] / "data"
GOLDEN_SHA = "e891c3abb9dbb8e57144a6ac57a344c26a6972107478f5c8746a058321b979dd"


def same(a: Gaussians, b: Gaussians) -> None:
    for name, tensor in a.tensors.items():
        torch.testing.assert_close(b.tensors[name], tensor, rtol=0, atol=0, msg=name)
    assert a.antialiased == b.antialiased


def table(g: Gaussians) -> dict[str, np.ndarray]:
    """Columns of a .ply by name, made independently of the writer."""
    rest = g.shN.numpy().transpose(0, 2, 1).reshape(len(g), -1)
    columns = {name: g.means[:, i].numpy() for i, name in enumerate("xyz")}
    columns |= {f"f_dc_{i}": g.sh0[:, i].numpy() for i in range(3)}
    columns |= {f"f_rest_{i}": rest[:, i] for i in range(rest.shape[1])}
    columns |= {"opacity": g.opacities.numpy()}
    columns |= {f"scale_{i}": g.scales[:, i].numpy() for i in range(3)}
    return columns | {f"rot_{i}": g.quats[:, i].numpy() for i in range(4)}


PLY_NAMES = {"f4": "float", "f8": "double", "u1": "uchar", "i4": "int"}


def ply_bytes(
    columns: dict[str, np.ndarray],
    *,
    order: str = "<",
    kinds: dict[str, str] | None = None,
    count: int | None = None,
    comments: tuple[str, ...] = (),
    before: bytes = b"",
    before_header: str = "",
    after_header: str = "",
    header_order: str | None = None,
) -> bytes:
    kinds = {name: (kinds or {}).get(name, "f4") for name in columns}
    n = len(next(iter(columns.values())))
    form = {"<": "binary_little_endian", ">": "binary_big_endian"}[header_order or order]
    head = ["ply", f"format {form} 1.0", *(f"comment {c}" for c in comments), *before_header.splitlines()]
    head += [f"element vertex {n if count is None else count}"]
    head += [f"property {PLY_NAMES[kind]} {name}" for name, kind in kinds.items()]
    head += [*after_header.splitlines(), "end_header", ""]
    rows = np.zeros(n, np.dtype([(name, order + kind) for name, kind in kinds.items()]))
    for name, values in columns.items():
        rows[name] = values
    return "\n".join(head).encode() + before + rows.tobytes()


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 70), degree=st.integers(0, 3), seed=st.integers(0, 99), antialiased=st.booleans())
def test_round_trip_is_exact(tmp_path: Path, make_scene, n: int, degree: int, seed: int, antialiased: bool) -> None:
    g = make_scene(n, degree, seed, antialiased)
    parts = write_ply(tmp_path / "a.ply", g, overwrite=True)
    same(g, read_ply(tmp_path / "a.ply"))
    assert sum(parts.values()) == (tmp_path / "a.ply").stat().st_size
    assert parts["vertices"] == n * {0: 68, 1: 104, 2: 164, 3: 248}[degree]


def test_many_blocks_are_written_in_order(tmp_path: Path, make_scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("radcomp_plugins.splats.formats.ply.ROWS_PER_BLOCK", 7)
    g = make_scene(100, 1)
    write_ply(tmp_path / "a.ply", g)
    same(g, read_ply(tmp_path / "a.ply"))


def test_layout_is_inrias(tmp_path: Path, make_scene) -> None:
    g = make_scene(3, 3)
    write_ply(tmp_path / "a.ply", g)
    data = (tmp_path / "a.ply").read_bytes()
    head, body = data.split(b"end_header\n", 1)
    names = [line.split()[2] for line in head.decode().splitlines() if line.startswith("property float")]
    assert names == ply_property_names(3) and len(names) == 62
    assert names[:9] == ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    assert names[9:54] == [f"f_rest_{i}" for i in range(45)]
    assert names[54:] == ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    rows = np.frombuffer(body, "<f4").reshape(3, 62)
    assert (rows[:, 3:6] == 0).all()
    # Channel-major: the second green coefficient is number 15 + 1.
    np.testing.assert_array_equal(rows[:, 9 + 16], g.shN[:, 1, 1].numpy())


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_degree_can_be_padded_or_cut(tmp_path: Path, make_scene, degree: int) -> None:
    g = make_scene(20, 2)
    write_ply(tmp_path / "a.ply", g, sh_degree=degree)
    same(g.with_sh_degree(degree), read_ply(tmp_path / "a.ply"))


@pytest.mark.parametrize("order", ["<", ">"])
def test_any_order_type_and_byte_order(tmp_path: Path, make_scene, order: str) -> None:
    g = make_scene(50, 1)
    columns = table(g)
    names = sorted(columns, key=lambda name: hashlib.md5(name.encode()).hexdigest())
    shuffled = {name: columns[name] for name in names[:7]} | {"label": np.arange(50) % 7, "quality": np.ones(50)}
    shuffled |= {name: columns[name] for name in names[7:]}
    kinds = {"x": "f8", "opacity": "f8", "label": "u1", "quality": "i4"}
    path = tmp_path / "a.ply"
    path.write_bytes(ply_bytes(shuffled, order=order, kinds=kinds, comments=("Generated by Nerfstudio 1.1.5",)))
    same(g, read_ply(path))


def test_other_elements_are_skipped(tmp_path: Path, make_scene) -> None:
    g = make_scene(9, 0)
    path = tmp_path / "a.ply"
    data = ply_bytes(
        table(g),
        before=b"\1" * 30,
        before_header="element camera 3\nproperty float a\nproperty uchar b\nproperty ushort c\nproperty int8 d\n"
        "property short e",
        after_header="element face 1\nproperty list uchar int vertex_indices",
    )
    path.write_bytes(data + b"\3" + b"\0" * 12)
    same(g, read_ply(path))


def test_ascii(tmp_path: Path, make_scene) -> None:
    g = make_scene(11, 1)
    columns = table(g)
    head = ["ply", "format ascii 1.0", "comment vertex follows", "element vertex 11"]
    head += [f"property float {name}" for name in columns] + ["end_header"]
    rows = [" ".join(repr(float(v)) for v in row) for row in zip(*columns.values(), strict=True)]
    path = tmp_path / "a.ply"
    path.write_text("\r\n".join(head + rows) + "\r\n", newline="")
    same(g, read_ply(path))
    path.write_text("\n".join(head + rows[:-1]))
    with pytest.raises(InputError, match="10 rows"):
        read_ply(path)
    path.write_text("\n".join(head + rows).replace("-", "x"))
    with pytest.raises(InputError, match="as numbers"):
        read_ply(path)


@pytest.mark.parametrize(
    ("comments", "antialiased"),
    [
        ((), False),
        (("SplatRenderMode: mip",), True),
        (("splatrendermode:  MIP",), True),
        (("SplatRenderMode: mip", "SplatRenderMode: default"), False),
        (("antialiased 1",), True),
        (("antialiased 0",), False),
        (("not SplatRenderMode: mip at all",), False),
    ],
)
def test_render_mode_comment(tmp_path: Path, make_scene, comments: tuple[str, ...], antialiased: bool) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(ply_bytes(table(make_scene(2, 0)), comments=comments))
    assert read_ply(path).antialiased == antialiased


def test_colours_in_place_of_sh(tmp_path: Path, make_scene) -> None:
    columns = {name: values for name, values in table(make_scene(4, 0)).items() if not name.startswith("f_dc")}
    columns |= {name: np.array([0, 51, 204, 255]) for name in ("red", "green", "blue")}
    path = tmp_path / "a.ply"
    path.write_bytes(ply_bytes(columns, kinds=dict.fromkeys(("red", "green", "blue"), "u1")))
    np.testing.assert_allclose(read_ply(path).sh0.numpy()[:, 1] * SH_C0 + 0.5, [0, 0.2, 0.8, 1], atol=1e-6)


def test_a_few_bad_gaussians_are_left_out_with_a_warning(tmp_path: Path, make_scene) -> None:
    g = make_scene(20, 1)
    columns = {name: values.copy() for name, values in table(g).items()}
    columns["f_rest_3"][4] = np.nan
    columns["x"][7] = np.inf
    for i in range(4):
        columns[f"rot_{i}"][9] = 0.0
    path = tmp_path / "a.ply"
    path.write_bytes(ply_bytes(columns))
    with pytest.warns(UserWarning, match="left out 3 of 20"):
        read = read_ply(path)
    keep = torch.ones(20, dtype=torch.bool)
    keep[[4, 7, 9]] = False
    same(g.select(keep), read)


def test_infinite_logits_and_zero_thickness_are_kept(tmp_path: Path, make_scene) -> None:
    columns = {name: values.copy() for name, values in table(make_scene(5, 0)).items()}
    columns["opacity"][:2] = np.inf, -np.inf
    columns["scale_2"][3] = -np.inf
    path = tmp_path / "a.ply"
    # Two of five scales would be impossible values, were -inf not a flat Gaussian.
    path.write_bytes(ply_bytes(columns))
    g = read_ply(path)
    assert g.opacities[:2].tolist() == [INFINITE_LOGIT, -INFINITE_LOGIT]
    assert float(g.scales[3, 2]) == -INFINITE_LOGIT


def hostile() -> dict[str, tuple[Callable[[dict[str, np.ndarray]], bytes], str]]:
    def without(name: str) -> Callable[[dict[str, np.ndarray]], bytes]:
        return lambda c: ply_bytes({k: v for k, v in c.items() if k != name})

    def nan(columns: dict[str, np.ndarray]) -> bytes:
        return ply_bytes({name: np.full_like(values, np.nan) for name, values in columns.items()})

    def replaced(old: bytes, new: bytes) -> Callable[[dict[str, np.ndarray]], bytes]:
        return lambda c: ply_bytes(c).replace(old, new)

    return {
        "empty file": (lambda c: b"", "expected a .ply file"),
        "no ply": (lambda c: b"PK\3\4 something", "expected a .ply file"),
        "header cut off": (lambda c: ply_bytes(c)[:200], "header is cut off"),
        "endless header": (lambda c: b"ply\n" + b"comment x\n" * 100_000, "header is cut off"),
        "truncated": (lambda c: ply_bytes(c)[:-1], "cut off or its count is wrong"),
        "body missing": (lambda c: ply_bytes(c, count=1).split(b"end_header\n")[0] + b"end_header\n", "cut off"),
        "count too large": (lambda c: ply_bytes(c, count=10**12), "10\\^?12|1000000000000 Gaussians"),
        "count absurd": (lambda c: ply_bytes(c, count=10**30), "cannot read the .ply header line"),
        "count negative": (lambda c: ply_bytes(c, count=-5), "cannot read the .ply header line"),
        "count too small": (lambda c: ply_bytes(c, count=10), "its count is wrong"),
        "zero Gaussians": (lambda c: ply_bytes(c, count=0), "has 0 Gaussians"),
        "NaN throughout": (nan, "impossible values"),
        "header says big": (lambda c: ply_bytes(c, header_order=">"), "byte order"),
        "header says little": (lambda c: ply_bytes(c, order=">", header_order="<"), "byte order"),
        "unknown format": (replaced(b"binary_little_endian", b"binary_pdp_endian"), "expected one of"),
        "unknown type": (replaced(b"property float x", b"property quad x"), "cannot read the .ply header line"),
        "repeated property": (replaced(b"property float y", b"property float x"), "appears twice"),
        "list in vertices": (replaced(b"property float x", b"property list uchar int l\nproperty float x"), "list"),
        "no vertices": (replaced(b"element vertex", b"element edge"), "no 'element vertex'"),
        "point cloud": (without("scale_0"), "no property 'scale_0'"),
        "no colours": (without("f_dc_1"), "no property 'f_dc_1'"),
        "odd number of SH": (without("f_rest_8"), "has 8 f_rest_"),
        "gap in SH": (replaced(b"f_rest_3", b"f_rest_30"), "has 9 f_rest_"),
        "SH of degree 4": (lambda c: ply_bytes(c | {f"f_rest_{i}": c["x"] for i in range(72)}), "has 72 f_rest_"),
        "compressed": (lambda c: ply_bytes(c | {"packed_position": c["x"]}), "compressed .ply"),
        "ascii count": (
            lambda c: ply_bytes(c, count=10**9).replace(b"binary_little_endian", b"ascii"),
            "too many for",
        ),
    }


@pytest.mark.parametrize("case", hostile())
def test_hostile_files_are_one_line(tmp_path: Path, make_scene, case: str) -> None:
    make, expected = hostile()[case]
    path = tmp_path / "bad.ply"
    path.write_bytes(make(table(make_scene(30, 1))))
    with pytest.raises(InputError, match=expected) as error:
        read_ply(path)
    assert "\n" not in str(error.value) and "bad.ply" in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_ply(tmp_path / "none.ply")


def test_writer_refuses(tmp_path: Path, make_scene) -> None:
    g = make_scene(3, 0)
    path = tmp_path / "a.ply"
    with pytest.raises(InputError, match="no Gaussians"):
        write_ply(path, g.select(torch.zeros(3, dtype=torch.bool)))
    g.means[1, 1] = torch.nan
    with pytest.raises(InputError, match="1 of 3 Gaussians"):
        write_ply(path, g)
    with pytest.raises(InputError, match="SH degree 4"):
        write_ply(path, make_scene(3, 0), sh_degree=4)
    assert not list(tmp_path.iterdir())
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already"):
        write_ply(path, make_scene(3, 0))
    assert path.read_bytes() == b"mine"


def test_golden_file(tmp_path: Path) -> None:
    g = read_ply(DATA / "golden.ply")
    assert (len(g), g.sh_degree, g.antialiased) == (40, 1, True)
    write_ply(tmp_path / "a.ply", g)
    assert hashlib.sha256((tmp_path / "a.ply").read_bytes()).hexdigest() == GOLDEN_SHA
    assert (tmp_path / "a.ply").read_bytes() == (DATA / "golden.ply").read_bytes()


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_gsply_reads_ours_and_we_read_gsplys(tmp_path: Path, make_scene, degree: int) -> None:
    gsply = pytest.importorskip("gsply", reason="gsply is not installed: pip install gsply")
    g = make_scene(64, degree)
    write_ply(tmp_path / "ours.ply", g)
    theirs = gsply.plyread(str(tmp_path / "ours.ply"))
    for name, tensor in g.tensors.items():
        np.testing.assert_array_equal(np.asarray(getattr(theirs, name)).reshape(tensor.shape), tensor.numpy(), name)
    gsply.plywrite(str(tmp_path / "theirs.ply"), theirs)
    same(g, read_ply(tmp_path / "theirs.ply"))


def test_splat_transform_reads_ours(tmp_path: Path, make_scene, splat_transform) -> None:
    g = make_scene(64, 3)
    write_ply(tmp_path / "a.ply", g)
    splat_transform(tmp_path / "a.ply", tmp_path / "b.ply")
    same(g, read_ply(tmp_path / "b.ply"))
