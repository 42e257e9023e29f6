"""The viewer in a real browser: its pictures against the Python renderer, and what it says when things break."""

import gzip
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from baked_scenes import toy_scene
from chromium import Browser, Page, find_chromium, open_browser

from radcomp_plugins.core.files import write_manifest
from radcomp_plugins.smerf.formats.arrays import slice_bounds
from radcomp_plugins.smerf.formats.small_files import NEAR
from radcomp_plugins.smerf.formats.smerf import write_smerf
from radcomp_plugins.smerf.layout import BakedScene
from radcomp_plugins.smerf.render import render
from radcomp_plugins.web.server import AssetServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine: install one or set CHROMIUM"),
]

WIDTH, HEIGHT = 90, 60


@lru_cache(maxsize=2)
def scene(submodels_per_axis: int) -> BakedScene:
    """The toy scene, made once."""
    return toy_scene(T=64, S=16, K=submodels_per_axis, P=2)


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Exported toy scenes by their submodels per axis, with manifests as our exporter writes them."""
    folders = {}
    for k in (1, 2):
        folders[k] = tmp_path_factory.mktemp(f"toy{k}") / "asset"
        write_smerf(folders[k], scene(k), unused_grids=False)
        write_manifest(folders[k], {"format": "smerf"})
    return folders


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests; each opens pages of its own."""
    with open_browser(WIDTH + 600, HEIGHT + 300) as browser:
        yield browser


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Serves an asset folder and gives the address of the viewer on it."""
    servers = []

    def start(folder: Path) -> str:
        server = AssetServer(folder, port=0)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return f"{server.url.split('?')[0]}?asset=/asset&size={WIDTH}x{HEIGHT}&quality=reference&loop=off"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A fresh tab."""
    page = browser.new_page()
    yield page
    page.close()


def opened(page: Page, url: str) -> None:
    """Open the viewer and wait for its first submodel."""
    page.open(url)
    page.wait_for("window.radcomp")
    page.evaluate("radcomp.ready.then(() => true)")


def error_of(page: Page, url: str) -> str:
    """What the page says went wrong."""
    page.open(url)
    return page.wait_for("!document.getElementById('error').hidden && document.getElementById('error').textContent")


def picture(page: Page, pose: int | dict) -> np.ndarray:
    """What the viewer draws from a pose, once its submodel is there: [H, W, 3] in 0..1."""
    page.evaluate(f"(async () => {{ radcomp.setPose({json.dumps(pose)}); await radcomp.settled(); }})()")
    return page.pixels("(radcomp.renderOnce(), radcomp.readPixels())", WIDTH, HEIGHT) / 255.0


def expected(baked: BakedScene, frame: int, submodel: int | None = None) -> np.ndarray:
    """The Python renderer's picture of a test frame."""
    camera = baked.test_frames[frame]
    zoom = WIDTH / camera.width
    drawn = render(
        baked, camera.c2w, camera.fx * zoom, camera.fy * zoom, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT,
        near=NEAR, submodel=submodel,
    )  # fmt: skip
    return drawn["rgb"].numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10.0 * np.log10(max(1e-12, ((a - b) ** 2).mean())))


def broken(assets: dict[int, Path], tmp_path: Path, k: int = 1) -> Path:
    """A copy of an asset to break."""
    return Path(shutil.copytree(assets[k], tmp_path / "broken"))


def test_pictures_equal_the_python_renderer(page: Page, serve: Callable, assets: dict[int, Path]):
    opened(page, serve(assets[1]))
    pictures = []
    for frame in range(3):
        drawn = picture(page, frame)
        assert drawn.std() > 0.05, "the picture shows something"
        assert psnr(drawn, expected(scene(1), frame)) > 40.0
        assert np.array_equal(drawn, picture(page, frame)), "the same picture again"
        pictures.append(drawn)
    assert psnr(pictures[0], pictures[1]) < 30.0, "poses differ"
    assert page.messages == [] and page.failures == []


def test_switches_submodels_and_fades(page: Page, serve: Callable, assets: dict[int, Path]):
    opened(page, serve(assets[2]) + "&fade=8000")
    alive = scene(2).layout.alive
    assert page.evaluate("radcomp.stats().submodel") == alive[0]
    first = expected(scene(2), 0)
    assert psnr(picture(page, 0), first) > 40.0
    # The other submodel's cell: its picture comes in gradually, and at last alone.
    # Watched in the page itself: on a busy machine a question from here may outlast the fade.
    seen = page.evaluate(
        "(async () => { const seen = []; radcomp.setLoop(true); radcomp.setPose(2);"
        " for (let i = 0; i < 5000; i++) { await new Promise(requestAnimationFrame); const now = radcomp.stats();"
        " if (now.fading) seen.push([now.previous, now.submodel, now.opacity]); else if (seen.length) break; }"
        " return seen; })()"
    )
    assert {tuple(entry[:2]) for entry in seen} == {alive}
    opacities = [entry[2] for entry in seen[1:]]
    assert len(opacities) > 2 and opacities == sorted(opacities) and 0.0 <= opacities[0] < opacities[-1] <= 1.0
    page.evaluate("radcomp.setLoop(false)")
    assert psnr(picture(page, 2), expected(scene(2), 2)) > 40.0
    stats = page.evaluate("radcomp.stats()")
    assert stats["switches"] == 2 and {entry["state"] for entry in stats["submodels"]} == {"ready"}
    assert page.messages == [] and page.failures == []


def test_a_fade_mixes_the_two_pictures(page: Page, serve: Callable, assets: dict[int, Path]):
    opened(page, serve(assets[2]))
    picture(page, 2)  # both submodels are on the graphics card now

    def mixed(opacity: float) -> np.ndarray:
        return page.pixels(f"(radcomp.renderMixed({opacity}), radcomp.readPixels())", WIDTH, HEIGHT) / 255.0

    old, new = mixed(0.0), mixed(1.0)
    assert psnr(new, expected(scene(2), 2, submodel=7)) > 40.0
    assert psnr(old, expected(scene(2), 2, submodel=3)) > 40.0, "from outside of its cell, along its regions' borders"
    assert psnr(old, new) < 30.0
    assert np.abs(mixed(0.25) - (0.75 * old + 0.25 * new)).max() < 1.5 / 255.0


def test_memory_is_bounded(page: Page, serve: Callable, assets: dict[int, Path]):
    opened(page, serve(assets[2]) + "&memory=1&fade=0")
    both = 0
    for pose in (2, 0, 2):
        picture(page, pose)
        stats = page.evaluate("radcomp.stats()")
        both = max(both, stats["textureBytes"])
    assert both <= 2**20 and stats["evictions"] == 0, "two toy submodels fit in 1 MiB"
    opened(page, serve(assets[2]) + "&memory=0.2&fade=0")
    for pose in (2, 0, 2):
        picture(page, pose)
        page.evaluate("new Promise(requestAnimationFrame).then(() => new Promise(requestAnimationFrame))")
        stats = page.evaluate("radcomp.stats()")
        assert stats["textureBytes"] <= 0.2 * 2**20 and len(stats["submodels"]) == 1
    assert stats["evictions"] >= 2
    assert psnr(picture(page, 2), expected(scene(2), 2)) > 40.0, "what was dropped is fetched again"


def test_fetches_ahead_what_is_needed_soonest(page: Page, serve: Callable, assets: dict[int, Path]):
    opened(page, serve(assets[2]))
    asked = page.evaluate("""(async () => {
        const { Submodels } = await import(new URL("submodels.js", document.baseURI).href);
        const layout = { single: false, alive: [0, 16, 32], perAxis: 4 }; // side by side along the first axis
        const next = (speed, memory) => {
            const submodels = new Submodels({ layout, memory });
            const loads = [];
            submodels.load = (gl, index) => loads.push(index);
            submodels.entries.set(0, { state: "ready", bytes: 10 });
            submodels.current = submodels.target = 0;
            submodels.prefetch(null, [0.75, -0.75, -0.75], [-speed, 0, 0], 0);
            return loads[0] ?? -1;
        };
        return [next(0, 100), next(0.02, 100), next(0.1, 100), next(1, 100), next(0.1, 15)];
    })()""")
    assert asked == [-1, 1, 1, 2, -1], "standing still; border 12 s away; 2.5 s; far beyond it in a second; no room"


def in_modules(page: Page, names: str, script: str) -> Any:
    """What a function body returns that has the viewer's modules `names`, as in "{ Camera } = camera.js"."""
    what, module = names.split(" = ")
    return page.evaluate(
        f'(async () => {{ const {what} = await import(new URL("{module}", document.baseURI).href); {script} }})()'
    )


def test_a_camera_starts_where_its_pose_is(page: Page, serve: Callable, assets: dict[int, Path]):
    opened(page, serve(assets[1]))
    for entry in json.loads((assets[1] / "sm_000" / "test_frames.json").read_text())["test_frames"]:
        projection = entry["projection"]
        got = in_modules(
            page,
            "{ Camera } = camera.js",
            f"const camera = new Camera(); camera.start({json.dumps(entry)});"
            f"const pose = camera.pose({projection[5] / projection[0]});"
            "return [pose.position, [...pose.rotation], [...pose.projection], camera.near];",
        )
        np.testing.assert_allclose(got[0], entry["position"], atol=1e-9)
        np.testing.assert_allclose(got[1], entry["rotation"], atol=1e-9)
        np.testing.assert_allclose([got[2][0], got[2][5]], [projection[0], projection[5]], rtol=1e-9)
        assert got[3] == pytest.approx(NEAR) and got[2][11] == -1
        # The near plane of its own projection, whose far plane is another one.
        assert got[2][14] / (got[2][10] - 1) == pytest.approx(NEAR)


def test_hands_move_a_camera_by_hand(page: Page, serve: Callable, assets: dict[int, Path]):
    """From the origin along -z, with 90 degrees from top to bottom: at a distance of 1 the picture is 2 high."""
    opened(page, serve(assets[1]))

    def after(actions: str, mode: str = "fly") -> list[list[float]]:
        return in_modules(
            page,
            "{ Camera } = camera.js",
            f"const c = new Camera('{mode}'); c.fieldOfView = Math.PI / 2; const at = (x, y) => ({{ pointerId: 1,"
            f" clientX: x, clientY: y, buttons: 1 }}); {actions}; return [c.position, c.forward, c.target];",
        )

    keys = {"KeyD": [1, 0, 0], "KeyA": [-1, 0, 0], "KeyE": [0, 1, 0], "KeyQ": [0, -1, 0], "KeyW": [0, 0, -1]}
    for key, way in keys.items():
        np.testing.assert_allclose(after(f"c.keys.add('{key}'); c.advance(2)")[0], way, atol=1e-12)
    ahead = [np.sin(0.1) * np.cos(0.2), np.sin(0.2), -np.cos(0.1) * np.cos(0.2)]
    position, forward, _ = after("c.turn(0.1, 0.2)")
    np.testing.assert_allclose(position, [0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(forward, ahead, atol=1e-12)
    position, forward, target = after("c.turn(0.1, 0.2)", "orbit")
    np.testing.assert_allclose(forward, ahead, atol=1e-12)
    np.testing.assert_allclose(np.subtract(target, position), ahead, atol=1e-12)
    np.testing.assert_allclose(target, [0, 0, -1])
    assert after("c.turn(0, 9)")[1][1] == pytest.approx(0.995)
    for factor, distance in ((0.5, 0.5), (1e-9, 0.02), (1e9, 20.0)):
        assert after(f"c.zoom({factor})", "orbit")[0] == pytest.approx([0, 0, distance - 1])
    # Down and to the right by a tenth of the height, with Shift: the scene follows the hand, the camera goes against.
    drag = "c.pointers.set(1, [50, 50]); c.drag({ ...at(70, 70), shiftKey: SHIFT }, 200)"
    np.testing.assert_allclose(after(drag.replace("SHIFT", "true"), "orbit")[0], [-0.2, 0.2, 0], atol=1e-12)
    for mode, angle in (("fly", -0.1 * np.pi / 2), ("orbit", -0.1 * 2.5 * np.pi / 2)):
        _, forward, _ = after(drag.replace("SHIFT", "false"), mode)
        assert np.arctan2(forward[0], -forward[2]) == pytest.approx(angle)
        assert np.arcsin(forward[1]) == pytest.approx(-angle if mode == "fly" else angle)


@pytest.mark.parametrize("triplane", [2048, 2056, 2072, 4096])
def test_grids_of_many_cells_lie_in_files_as_the_writer_cuts_them(
    page: Page, serve: Callable, assets: dict[int, Path], triplane: int
):
    opened(page, serve(assets[1]))
    params = json.loads((assets[1] / "sm_000" / "scene_params.json").read_text())
    params |= {"triplane_resolution": triplane, "triplane_voxel_size": 4 / triplane}
    got = in_modules(page, "{ parseLayout } = scene.js", f"return parseLayout({json.dumps(params)}).gridLayers;")
    assert got == [end - begin for begin, end in slice_bounds(triplane // 8)]


def test_quality_by_hand(page: Page, serve: Callable, assets: dict[int, Path]):
    """At 10 frames a second: half the scale, then the least scale and steps by 1.6, shorter steps before more scale."""
    opened(page, serve(assets[1]))
    got = in_modules(
        page,
        "{ Quality } = quality.js",
        "const q = new Quality(10), seen = []; const note = () => seen.push([q.scale, q.step]);"
        "q.change(0.5); note(); q.change(0.25); note(); seen.push([q.still().scale, q.still().step]);"
        "q.change(1.25); note(); q.change(1.25); note(); q.change(1.25); note(); q.change(0.01); note(); return seen;",
    )
    # A whole picture would take 100 ms x 1.6 / 0.2^2 = 4000, of which 500 are a scale of the root of 1 / 8.
    expected = [[0.5, 1], [0.2, 1.6], [8**-0.5, 1], [0.2, 1.024], [0.2, 1], [0.25, 1], [0.2, 2]]
    np.testing.assert_allclose(got, expected)


def test_submodels_change_late_fade_softly_and_the_longest_unused_go(
    page: Page, serve: Callable, assets: dict[int, Path]
):
    opened(page, serve(assets[2]))
    # Cells of 1 side by side along x, which runs the other way; their border is at 0.
    nearest = in_modules(
        page,
        "{ nearest } = scene.js",
        "const layout = { single: false, alive: [0, 4], perAxis: 2 };"
        "return [0.1, 0.01, -0.01, -0.1].map((x) => nearest(layout, [x, 0, 0], 0, 0.04));",
    )
    assert nearest == [0, 0, 0, 1]
    centres = in_modules(
        page,
        "{ centre } = scene.js",
        "const layout = { single: false, alive: [1, 2, 4], perAxis: 2 };"
        "return [0, 1, 2].map((i) => centre(layout, i));",
    )
    # One up along z, y and x of the exporter's axes: (-x, z, y) here.
    assert centres == [[0.5, 0.5, -0.5], [0.5, -0.5, 0.5], [-0.5, -0.5, -0.5]]
    opacities, kept, evictions = in_modules(
        page,
        "{ Submodels } = submodels.js",
        "const layout = { single: false, alive: [0, 16, 32], perAxis: 4 };"
        "const s = new Submodels({ layout, memory: 25, fadeMs: 100 });"
        "const entry = (used) => ({ state: 'ready', bytes: 10, used, textures: { units: [] } });"
        "s.entries = new Map([[0, entry(0)], [1, entry(5)], [2, entry(1)]]); s.current = s.target = 0; s.previous = 1;"
        "const opacities = [-5, 25, 50, 999].map((now) => s.layers(now).map((layer) => layer.opacity));"
        "s.previous = -1; s.evict(null); return [opacities, [...s.entries.keys()], s.evictions];",
    )
    # 3 t^2 - 2 t^3.
    assert opacities == [[1, 0], [1, 0.15625], [1, 0.5], [1, 1]] and kept == [0, 1] and evictions == 1


def test_what_an_address_asks_for(page: Page, serve: Callable, assets: dict[int, Path]):
    opened(page, serve(assets[1]))
    address = "http://host/view?asset=/a/sm_003&background=ff8000&memory=2&size=64x48&pose=2.9&fov=50"
    got = in_modules(page, "{ readOptions } = options.js", f"return readOptions(new URL('{address}'));")
    assert got["asset"] == "http://host/a/sm_003/" and got["direct"] and got["frame"] == 2 and got["size"] == [64, 48]
    assert got["background"] == [1, 128 / 255, 0] and got["memory"] == 2 * 2**20 and got["fieldOfView"] == 50


def test_a_busy_host_is_asked_again(page: Page, serve: Callable, assets: dict[int, Path]):
    opened(page, serve(assets[1]))
    got = in_modules(
        page,
        "{ fetchJson } = loader.js",
        "const plain = window.fetch; let asked = 0;"
        "window.fetch = async () => new Response(asked++ ? '[7]' : '', { status: asked > 1 ? 200 : 503 });"
        "try { return [await fetchJson('http://host/a/', 'b.json', { plainOnly: true }), asked]; }"
        "finally { window.fetch = plain; }",
    )
    assert got == [[7], 2]


def test_inverses_need_the_largest_pivot(page: Page, serve: Callable, assets: dict[int, Path]):
    """By a pivot of 1e-20 alone, the other row would be lost."""
    opened(page, serve(assets[1]))
    matrix = np.eye(4)
    matrix[:2, :2] = [[1e-20, 1], [1, 1]]
    columns = json.dumps(matrix.T.ravel().tolist())
    got = in_modules(page, "{ invert } = matrix.js", f"return [...invert({columns})];")
    np.testing.assert_allclose(np.reshape(got, (4, 4)).T @ matrix, np.eye(4), atol=1e-12)


def test_survives_a_lost_context(page: Page, serve: Callable, assets: dict[int, Path]):
    opened(page, serve(assets[1]))
    before = picture(page, 1)
    page.evaluate(
        "window.lose = document.getElementById('view').getContext('webgl2').getExtension('WEBGL_lose_context');"
        "lose.loseContext()"
    )
    notice = page.wait_for("!document.getElementById('notice').hidden && document.getElementById('notice').textContent")
    assert "context was lost" in notice
    page.evaluate("lose.restoreContext()")
    page.wait_for("document.getElementById('notice').hidden")
    assert np.array_equal(picture(page, 1), before)
    assert page.evaluate("document.getElementById('error').hidden")


def test_no_webgl2(page: Page, serve: Callable, assets: dict[int, Path]):
    page.run_first("HTMLCanvasElement.prototype.getContext = () => null")
    assert "has no WebGL2" in error_of(page, serve(assets[1]))


def test_missing_file(page: Page, serve: Callable, assets: dict[int, Path], tmp_path: Path):
    folder = broken(assets, tmp_path)
    (folder / "sm_000" / "plane_rgb_1.raw.gz").unlink()
    message = error_of(page, serve(folder))
    assert "sm_000/plane_rgb_1.raw" in message and "missing (HTTP 404" in message


def test_truncated_and_damaged_files(page: Page, serve: Callable, assets: dict[int, Path], tmp_path: Path):
    folder = broken(assets, tmp_path)
    path = folder / "sm_000" / "plane_density_2.raw.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "plane_density_2.raw.gz is damaged" in error_of(page, serve(folder))
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-100]))
    message = error_of(page, serve(folder)).replace(".gz", "")
    assert "plane_density_2.raw has 3996 bytes, scene_params.json makes it 4096" in message
    path.write_bytes(gzip.compress(gzip.decompress(whole) + bytes(100_000)))
    assert "has more than the 4096 bytes" in error_of(page, serve(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"triplane_resolution": 128}, "triplane_voxel_size is 0.0625"),
        ({"triplane_resolution": 10**9}, "triplane_resolution is 1000000000, expected a whole number"),
        ({"sparse_grid_resolution": "16"}, "sparse_grid_resolution is"),
        ({"data_block_size": 0}, "data_block_size is 0"),
        ({"atlas_width": 100}, "not made of blocks of 9"),
        ({"atlas_width": 99999}, "atlas_width is 99999"),
        ({"num_slices": 7}, "num_slices is 7"),
        ({"range_density": [14, -14]}, "range_density is [14,-14]"),
        ({"activation": "tanh"}, "activation is"),
        ({"params_to_sm": [5]}, "params_to_sm has to be 1 whole numbers from 0 to 0"),
        ({"export_array_format": "png"}, "export_array_format is"),
        ({"submodel_scale": None}, "submodel_scale is null"),
        ({"merge_features_combine_op": "sum"}, "deferred_mlp.json: layer 0 is 41 to 16, expected 34 inputs"),
    ],
)
def test_lying_scene_params(
    page: Page, serve: Callable, assets: dict[int, Path], tmp_path: Path, change: dict, message: str
):
    folder = broken(assets, tmp_path)
    path = folder / "sm_000" / "scene_params.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert message in error_of(page, serve(folder))


def test_sizes_that_lie_together_are_found_by_the_files(
    page: Page, serve: Callable, assets: dict[int, Path], tmp_path: Path
):
    folder = broken(assets, tmp_path)
    path = folder / "sm_000" / "scene_params.json"
    lie = {"triplane_resolution": 128, "triplane_voxel_size": 4 / 128}
    path.write_text(json.dumps({**json.loads(path.read_text()), **lie}))
    assert "scene_params.json makes it" in error_of(page, serve(folder))


def test_block_indices_outside_of_the_atlas(page: Page, serve: Callable, assets: dict[int, Path], tmp_path: Path):
    folder = broken(assets, tmp_path)
    path = folder / "sm_000" / "sparse_grid_block_indices.raw.gz"
    path.write_bytes(gzip.compress(b"\xc8" * len(gzip.decompress(path.read_bytes()))))
    assert "block 0 lies at 200, 200, 200, outside of the atlas" in error_of(page, serve(folder))


def test_json_that_is_none(page: Page, serve: Callable, assets: dict[int, Path], tmp_path: Path):
    folder = broken(assets, tmp_path)
    (folder / "sm_000" / "scene_params.json").write_text("<html>")
    assert "scene_params.json is not JSON" in error_of(page, serve(folder))


def test_a_missing_submodel_leaves_the_other_one(page: Page, serve: Callable, assets: dict[int, Path], tmp_path: Path):
    folder = broken(assets, tmp_path, 2)
    shutil.rmtree(folder / "sm_007")
    opened(page, serve(folder))
    page.evaluate("radcomp.setPose(2)")
    notice = page.wait_for("!document.getElementById('notice').hidden && document.getElementById('notice').textContent")
    assert "submodel 7" in notice and "sm_007/scene_params.json is missing" in notice
    page.evaluate("radcomp.renderOnce()")
    assert page.evaluate("radcomp.stats().submodel") == 3


def test_addresses_that_mean_nothing(page: Page, serve: Callable, assets: dict[int, Path]):
    url = serve(assets[1])
    for query, message in (
        ("?", "Which asset?"),
        ("?asset=/asset/../..", "no SMERF asset"),
        ("?asset=file:///etc", "has to come from a web server"),
        ("?asset=/asset&fps=fast", "fps=fast"),
        ("?asset=/asset&size=9", "size=9"),
    ):
        assert message in error_of(page, url.split("?")[0] + query)


def test_opens_from_a_plain_static_host(page: Page, serve: Callable, assets: dict[int, Path], tmp_path: Path):
    """Decompressed files and no manifest, as after unpacking for a host that knows nothing of gzip."""
    folder = broken(assets, tmp_path)
    (folder / "manifest.json").unlink()
    for path in (folder / "sm_000").glob("*.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    opened(page, serve(folder))
    assert psnr(picture(page, 0), expected(scene(1), 0)) > 40.0


def test_the_server_names_a_start(page: Page, assets: dict[int, Path]):
    for folder in (assets[1], assets[1] / "sm_000", assets[2]):
        with AssetServer(folder, port=0) as server:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            opened(page, f"{server.url}&size={WIDTH}x{HEIGHT}&loop=off")
            assert page.messages == [] and page.failures == []
            server.shutdown()


def test_draws_by_itself_and_adapts(page: Page, serve: Callable, assets: dict[int, Path]):
    url = (
        serve(assets[1])
        .replace("&quality=reference&loop=off", "&fps=240")
        .replace("60&", "400&")
        .replace("90x", "600x")
    )
    opened(page, url)
    page.wait_for("radcomp.stats().frames > 0")
    page.evaluate("window.dispatchEvent(new KeyboardEvent('keydown', {code: 'KeyE'}))")
    page.wait_for("radcomp.stats().quality.scale < 1", timeout=60)
    page.evaluate("window.dispatchEvent(new KeyboardEvent('keyup', {code: 'KeyE'}))")
    page.wait_for("radcomp.stats().frames > 3")
    assert page.evaluate("document.querySelector('[data-row=frame]').textContent") not in ("-", "")
    assert page.messages == [] and page.failures == []
