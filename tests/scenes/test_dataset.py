import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.utils.data_utils import get_depth_image_from_path
from PIL import Image
from plyfile import PlyData

from radcomp_plugins.core.files import read_manifest
from radcomp_plugins.errors import InputError
from radcomp_plugins.scenes import dataset, shapes
from radcomp_plugins.scenes.render import draw
from radcomp_plugins.scenes.world import Material, Scene

SIZES = {"still-life": (40, 40), "two-rooms": (48, 36)}
VIEWS = 9


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("scenes")
    for name, (width, height) in SIZES.items():
        dataset.make_dataset(name, root / name, views=VIEWS, width=width, height=height, seed=3)
    return {name: root / name for name in SIZES}


@pytest.fixture(scope="module", params=list(SIZES))
def made(request: pytest.FixtureRequest, folders: dict[str, Path]) -> tuple[str, Path]:
    return request.param, folders[request.param]


@pytest.fixture
def ball(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scene that is made at once, under the name of a real one."""
    material = Material(colors=((0.5, 0.5, 0.5),))
    scene = Scene({"m": material}, [shapes.sphere(0.7, "m", texel=0.3)], sky=((1.0, 1.0, 1.0),) * 3, gather=4)
    kind = dataset.SceneKind(lambda seed: scene, dataset.SCENES["still-life"].cameras, True, 100)
    monkeypatch.setitem(dataset.SCENES, "still-life", kind)


def nerfstudio_outputs(folder: Path, split: str):
    config = NerfstudioDataParserConfig(
        data=folder, orientation_method="none", center_method="none", auto_scale_poses=False
    )
    return config.setup().get_dataparser_outputs(split)


def test_nerfstudio_parser_reads_it(made: tuple[str, Path]) -> None:
    name, folder = made
    width, height = SIZES[name]
    train, test = nerfstudio_outputs(folder, "train"), nerfstudio_outputs(folder, "test")
    assert [len(train.image_filenames), len(test.image_filenames)] == [VIEWS - 1, 1]
    assert nerfstudio_outputs(folder, "val").image_filenames == test.image_filenames
    assert test.image_filenames[0].name == "frame_00005.png"
    cameras = train.cameras
    assert int(cameras.width[0]) == width and int(cameras.height[0]) == height
    assert float(cameras.cx[0]) == width / 2 and float(cameras.fx[0]) == float(cameras.fy[0])
    poses = dataset.SCENES[name].cameras(VIEWS, width, height, 3)
    assert np.allclose(train.cameras.camera_to_worlds[0], poses[0].pose[:3], atol=1e-6)
    assert float(cameras.fx[0]) == pytest.approx(poses[0].focal)
    for path in train.image_filenames:
        with Image.open(path) as image:
            assert image.size == (width, height)
            assert image.mode == ("RGBA" if name == "still-life" else "RGB")


def test_blender_parser_reads_the_still_life(folders: dict[str, Path]) -> None:
    folder = folders["still-life"]
    train = BlenderDataParserConfig(data=folder).setup().get_dataparser_outputs("train")
    test = BlenderDataParserConfig(data=folder).setup().get_dataparser_outputs("test")
    assert [len(train.image_filenames), len(test.image_filenames)] == [VIEWS - 1, 1]
    assert all(path.is_file() for path in train.image_filenames)
    other = nerfstudio_outputs(folder, "train").cameras
    assert np.allclose(train.cameras.camera_to_worlds, other.camera_to_worlds, atol=1e-6)
    assert float(train.cameras.fx[0]) == pytest.approx(float(other.fx[0]), rel=1e-6)
    assert float(train.cameras.cx[0]) == float(other.cx[0])


def test_alpha_is_straight_and_the_corners_are_free(folders: dict[str, Path]) -> None:
    for path in sorted((folders["still-life"] / "images").iterdir()):
        image = np.asarray(Image.open(path))
        assert (image[[0, 0, -1, -1], [0, -1, 0, -1], 3] == 0).all()
        assert (image[..., 3] == 255).mean() > 0.15
        edge = (image[..., 3] > 0) & (image[..., 3] < 255)
        # Premultiplied colours would fade to black with alpha; these do not.
        faint = edge & (image[..., 3] < 100)
        assert faint.any() and image[faint][:, :3].max(axis=1).mean() > 80


def points_of(camera, depth: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(depth > 0)
    z = depth[rows, columns]
    x = (columns + 0.5 - camera.width / 2) / camera.focal * z
    y = -(rows + 0.5 - camera.height / 2) / camera.focal * z
    return np.stack([x, y, -z], axis=1) @ camera.pose[:3, :3].T + camera.pose[:3, 3]


def test_written_depth_of_one_view_lands_on_the_surfaces_of_another(made: tuple[str, Path]) -> None:
    """Points of view k seen from view m lie on what m sees there or behind it, never before it; many are on it."""
    name, folder = made
    width, height = SIZES[name]
    cameras = dataset.SCENES[name].cameras(VIEWS, width, height, 3)
    depths = []
    for k in range(VIEWS):
        path = folder / "depths" / f"{dataset.frame_name(k)}.png"
        depths.append(get_depth_image_from_path(path, height, width, dataset.DEPTH_UNIT)[..., 0].numpy())
    seen, shared, before = 0, 0, 0
    for k, m in itertools.permutations(range(VIEWS), 2):
        target = cameras[m]
        local = (points_of(cameras[k], depths[k]) - target.pose[:3, 3]) @ target.pose[:3, :3]
        z = -local[:, 2]
        front = z > 0.05
        column = target.focal * local[front, 0] / z[front] + width / 2
        row = -target.focal * local[front, 1] / z[front] + height / 2
        inside = (column > 2) & (column < width - 2) & (row > 2) & (row < height - 2)
        if inside.sum() < 50:
            continue
        i, j = row[inside].astype(int), column[inside].astype(int)
        window = np.stack([depths[m][i + a - 2, j + b - 2] for a, b in np.ndindex(5, 5)])
        nearest = np.where(window > 0, window, np.inf).min(axis=0)
        own = z[front][inside]
        # A pixel is a few hundredths of its depth wide: neighbours bound what is seen in between.
        before += int((own < 0.93 * nearest).sum())
        seen += len(own)
        shared += int(((own > 0.97 * nearest) & (own < 1.03 * window.max(axis=0))).sum())
    assert seen > 5000 and before / seen < 0.03 and shared / seen > 0.4, (seen, before / seen, shared / seen)


def test_points_lie_on_visible_surfaces_in_their_colour(made: tuple[str, Path]) -> None:
    name, folder = made
    vertices = PlyData.read(str(folder / "points3D.ply"))["vertex"]
    points = np.stack([vertices[c] for c in "xyz"], axis=1).astype(float)
    colors = np.stack([vertices[c] for c in ("red", "green", "blue")], axis=1)
    assert 1000 < len(points) <= dataset.SCENES[name].points and colors.dtype == np.uint8
    width, height = SIZES[name]
    cameras = dataset.SCENES[name].cameras(VIEWS, width, height, 3)
    truth = np.concatenate(
        [points_of(cameras[k], draw_depth(folder, k, width, height)) for k in range(VIEWS) if k != 4]
    )
    some = points[:: max(1, len(points) // 200)]
    nearest = np.array([np.linalg.norm(truth - p, axis=1).min() for p in some])
    assert np.median(nearest) < 0.01 and nearest.max() < 0.3
    assert colors.std(axis=0).min() > 20


def draw_depth(folder: Path, k: int, width: int, height: int) -> np.ndarray:
    path = folder / "depths" / f"{dataset.frame_name(k)}.png"
    return get_depth_image_from_path(path, height, width, dataset.DEPTH_UNIT)[..., 0].numpy()


def test_depth_is_everywhere_in_the_rooms(folders: dict[str, Path]) -> None:
    for path in (folders["two-rooms"] / "depths").iterdir():
        depth = np.asarray(Image.open(path))
        assert depth.dtype == np.uint16 and depth.min() > 150


def test_cameras_of_the_rooms_stand_in_free_space() -> None:
    world_cameras = dataset.SCENES["two-rooms"].cameras(60, 16, 12, 0)
    world = dataset.compile_scene(dataset.SCENES["two-rooms"].build(0))
    for camera in world_cameras[::3]:
        _, depth = draw(world, camera)
        assert depth.min() > 0.15
    positions = np.array([c.pose[:3, 3] for c in world_cameras])
    assert (positions[:, 0] < -0.5).sum() >= 15 and (positions[:, 0] > 0.8).sum() >= 15
    assert (np.abs(positions[:, 0] - 0.08) < 0.6).any()
    test = [p for p, t in zip(positions, dataset.held_out(60), strict=True) if t]
    assert min(p[0] for p in test) < -1 and max(p[0] for p in test) > 1


def test_same_seed_same_bytes_and_the_manifest_is_whole(tmp_path: Path, folders: dict[str, Path]) -> None:
    dataset.make_dataset("still-life", tmp_path / "again", views=VIEWS, width=40, height=40, seed=3)
    assert read_manifest(tmp_path / "again") == read_manifest(folders["still-life"])


def test_another_seed_gives_other_cameras_and_things() -> None:
    for kind in dataset.SCENES.values():
        first, second = kind.build(0), kind.build(1)
        assert len(first.patches) > 100
        assert any(
            a.points.shape != b.points.shape or not np.array_equal(a.points, b.points)
            for a, b in zip(first.patches, second.patches, strict=False)
        )
        assert not np.array_equal(kind.cameras(4, 16, 16, 0)[0].pose, kind.cameras(4, 16, 16, 1)[0].pose)


def test_held_out_views() -> None:
    assert [k for k, t in enumerate(dataset.held_out(60)) if t] == [4, 12, 20, 28, 36, 44, 52]
    for views in range(2, 12):
        assert 0 < sum(dataset.held_out(views)) < views


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "dragon"}, "no scene is called 'dragon': expected one of still-life, two-rooms"),
        ({"views": 0}, "views is 0: expected a whole number from 2"),
        ({"views": 1}, "views is 1: expected a whole number from 2"),
        ({"width": 0}, "width is 0: expected a whole number from 16 to 4096"),
        ({"height": 100000}, "height is 100000"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_requests_give_one_line_and_leave_nothing(tmp_path: Path, change: dict, message: str) -> None:
    wish = {"name": "still-life", "output_dir": tmp_path / "out", "views": 4, "width": 16, "height": 16, **change}
    with pytest.raises(InputError, match=message) as caught:
        dataset.make_dataset(**wish)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("ball")
def test_existing_folders_are_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.txt").write_text("dear")
    for overwrite in (False, True):
        with pytest.raises(InputError):
            dataset.make_dataset("still-life", tmp_path / "mine", views=2, width=16, height=16, overwrite=overwrite)
    assert (tmp_path / "mine" / "photo.txt").read_text() == "dear"


@pytest.mark.usefixtures("ball")
def test_own_folder_is_replaced_only_on_request(tmp_path: Path) -> None:
    dataset.make_dataset("still-life", tmp_path / "s", views=2, width=16, height=16)
    with pytest.raises(InputError, match="--overwrite"):
        dataset.make_dataset("still-life", tmp_path / "s", views=3, width=16, height=16)
    dataset.make_dataset("still-life", tmp_path / "s", views=3, width=16, height=16, overwrite=True)
    assert len(json.loads((tmp_path / "s" / "transforms.json").read_text())["frames"]) == 3


@pytest.mark.usefixtures("ball")
def test_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    def fail(stage: str, done: int, total: int) -> None:
        if stage == "views" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dataset.make_dataset("still-life", tmp_path / "s", views=3, width=16, height=16, progress=fail)
    assert list(tmp_path.iterdir()) == []
