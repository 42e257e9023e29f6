"""Our browser viewer beside the Python renderer and the official SMERF viewer: pictures, frame times, bytes, memory.

    python benchmarks/web_viewer.py --asset exports/chair --official smerf-3d.github.io/viewer --output web_viewer

Headless Chromium with WebGL2 in software draws the test poses of an asset with both viewers, on canvases of one size,
in turns, so that noise falls on both. Both draw the whole picture with plain steps (the official viewer's longer steps
behind what is nearly opaque are switched off, as ours are in its reference quality). The official viewer is any
checkout of github.com/smerf-3d/smerf-3d.github.io; without --official its columns are left out. Writes report.json, and
for each pose a picture: ours, Python's, the official one, and the errors of both against Python's, four times enlarged.

Frame times are wall time from setting the pose to having read the pixels, and the processor time of the browser's
processes meanwhile, which other programs on the machine change less.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from chromium import Browser, Page, open_browser  # noqa: E402 - lies beside the tests, which use it too

from radcomp_plugins.smerf.formats.smerf import read_smerf  # noqa: E402
from radcomp_plugins.smerf.layout import BakedScene, rotate_to_webgl  # noqa: E402
from radcomp_plugins.smerf.render import Renderer  # noqa: E402
from radcomp_plugins.web.server import AssetServer  # noqa: E402

READY = "gRayMarchTextureBuffers[gActiveRayMarchTextureBuffer].state === READY && !isLoading()"
# The official viewer's own loop is stopped, its projection left as it is set, and its longer steps are taken out.
TAKE_OVER = """(() => {
  const frame = window.renderNextFrame;
  window.renderNextFrame = () => {};
  gCamera.updateProjectionMatrix = () => {};
  const material = getRayMarchScene().children[0].material;
  material.fragmentShader = material.fragmentShader.replace('#define LARGER_STEPS_WHEN_OCCLUDED', '');
  material.needsUpdate = true;
  const gl = gRenderer.getContext();
  window.draw = (pose) => {
    gCamera.position.fromArray(pose.position);
    gCamera.setRotationFromMatrix(new THREE.Matrix4().fromArray(pose.rotation));
    gCamera.projectionMatrix.fromArray(pose.projection);
    frame(0);
    const pixels = new Uint8Array(4 * gl.drawingBufferWidth * gl.drawingBufferHeight);
    gl.readPixels(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
    return pixels;
  };
})()"""
OURS = """(() => {
  window.draw = (pose) => {
    radcomp.setPose(pose);
    radcomp.renderOnce();
    return radcomp.readPixels();
  };
})()"""
# What other programs' pages do: a page of its own for counting, and an icon that browsers ask for by themselves.
NOT_OURS = ("googletagmanager", "favicon.ico")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--asset", type=Path, required=True, help="folder of an exported scene")
    parser.add_argument("--official", type=Path, help="folder viewer/ of a checkout of the official viewer")
    parser.add_argument("--output", type=Path, default=Path("web_viewer"))
    parser.add_argument("--size", type=int, nargs=2, default=(400, 400), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--poses", type=int, nargs="+", default=[0, 1, 2], help="of test_frames.json")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds, after one that is not counted")
    parser.add_argument("--nice", type=int, default=0, help="priority that the browser gives up")
    return parser.parse_args()


def fitted(pose: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    """A test pose on a canvas of other proportions: the same vertical field of view and near plane."""
    projection = list(pose["projection"])
    projection[0] = projection[5] * height / width
    return {"position": pose["position"], "rotation": pose["rotation"], "projection": projection}


def python_picture(renderer: Renderer, pose: dict[str, Any], width: int, height: int) -> NDArray[np.float32]:
    """The Python renderer's picture [H, W, 3] of a pose of test_frames.json."""
    c2w = np.empty((3, 4))
    c2w[:, :3] = rotate_to_webgl(np.reshape(pose["rotation"], (4, 4))[:3, :3]).T
    c2w[:, 3] = rotate_to_webgl(np.asarray(pose["position"]))
    projection = pose["projection"]
    drawn = renderer.picture(
        c2w,
        projection[0] * width / 2,
        projection[5] * height / 2,
        width / 2 * (1 - projection[8]),
        height / 2 * (1 + projection[9]),
        width,
        height,
        near=projection[14] / (projection[10] - 1.0),
    )
    return drawn["rgb"].numpy()


def psnr(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """In dB, of values in 0..1."""
    return float(-10.0 * np.log10(max(1e-12, float(np.mean((a - b) ** 2)))))


def complaints(page: Page) -> list[str]:
    """Errors, warnings and failed requests of a page, beside those that are none of the asset's."""
    said = [f"{level}: {text}" for level, text in page.messages if level not in ("log", "info", "debug", "verbose")]
    return [line for line in said + page.failures if not any(name in line for name in NOT_OURS)]


def open_ours(browser: Browser, address: str, width: int, height: int) -> tuple[Page, dict[str, Any]]:
    """Our viewer, loaded, with what it took to the first picture."""
    page = browser.new_page()
    page.open(f"{address}&size={width}x{height}&quality=reference&loop=off&panel=off")
    page.wait_for("window.radcomp")
    start = time.perf_counter()
    page.evaluate("radcomp.ready.then(() => { radcomp.renderOnce(); radcomp.readPixels(); })", timeout=300)
    seconds = time.perf_counter() - start
    page.evaluate(OURS)
    return page, {**page.evaluate("radcomp.stats()"), "seconds_to_first_picture": seconds}


def open_official(browser: Browser, address: str, folder: str, width: int, height: int) -> Page:
    """The official viewer on one submodel's folder, loaded and taken over."""
    page = browser.new_page()
    page.block("*googletagmanager*")
    options = f"benchmark=quality&s={width},{height}&useBits=true&useDistanceGrid=true"
    page.open(f"{address}/official/index.html?dir={folder}&{options}")
    page.wait_for(READY, timeout=300)
    page.evaluate(TAKE_OVER)
    # Its first frames are drawn while buffers are changed.
    page.wait_for(READY, timeout=60)
    return page


def go_to(name: str, page: Page, pose: dict[str, Any]) -> None:
    """Bring a viewer to a pose and wait until its submodel draws."""
    if name == "ours":
        page.evaluate(f"(async () => {{ radcomp.setPose({json.dumps(pose)}); await radcomp.settled(); }})()")
        return
    for _ in range(200):
        page.evaluate(f"draw({json.dumps(pose)}) && 0")
        index = "positionToSubmodel(gCamera.position, getActiveSubmodelContent().params)"
        if page.evaluate(f"{READY} && (getSubmodelContent({index}) == null || getActiveSubmodelIndex() === {index})"):
            return
        time.sleep(0.1)
    raise TimeoutError("the official viewer did not switch to the submodel of a pose")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Pictures and times of both viewers; the pictures are written as they are made."""
    width, height = arguments.size
    more = {"/official/": arguments.official} if arguments.official else {}
    renderer = Renderer(read_smerf(arguments.asset))
    folder = first_submodel(arguments.asset, renderer.scene)
    frames = json.loads((folder / "test_frames.json").read_text())["test_frames"]
    poses = {index: fitted(frames[index], width, height) for index in arguments.poses if index < len(frames)}
    report: dict[str, Any] = {"schema_version": 1, "asset": arguments.asset.name, "size": [width, height], "poses": {}}
    report["bytes_on_disk"] = sum(path.stat().st_size for path in arguments.asset.rglob("*") if path.is_file())
    with (
        AssetServer(arguments.asset, port=0, more=more) as server,
        open_browser(width + 100, height + 150, nice=arguments.nice) as browser,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        before = browser.resident_bytes()
        ours, opened = open_ours(browser, server.url, width, height)
        report["browser"] = ours.evaluate("navigator.userAgent")
        report["seconds_to_first_picture"] = opened["seconds_to_first_picture"]
        report["bytes_to_first_picture"] = opened["firstPicture"]["bytes"]
        report["texture_bytes"] = opened["textureBytes"]
        report["browser_bytes_added"] = browser.resident_bytes() - before
        pages = {"ours": ours}
        if arguments.official:
            name = "" if folder == arguments.asset else f"/{folder.name}"
            pages["official"] = open_official(browser, address, f"/asset{name}", width, height)
        for index, pose in poses.items():
            report["poses"][index] = one_pose(pages, browser, renderer, pose, arguments, index)
        report["complaints"] = {name: complaints(page) for name, page in pages.items()}
        server.shutdown()
    summarise(report, list(pages))
    return report


def first_submodel(asset: Path, scene: BakedScene) -> Path:
    """The folder that the official viewer is opened with."""
    inside = asset / f"sm_{scene.layout.alive[0]:03d}"
    return inside if inside.is_dir() else asset


def one_pose(
    pages: dict[str, Page],
    browser: Browser,
    renderer: Renderer,
    pose: dict[str, Any],
    arguments: argparse.Namespace,
    index: int,
) -> dict[str, Any]:
    """One pose drawn by all, then timed in turns."""
    width, height = arguments.size
    expected = python_picture(renderer, pose, width, height)
    result: dict[str, Any] = {}
    pictures = {}
    for name, page in pages.items():
        page.command("Page.bringToFront")
        go_to(name, page, pose)
        drawn = page.pixels(f"draw({json.dumps(pose)})", width, height) / 255.0
        pictures[name] = drawn
        same = np.array_equal(drawn, page.pixels(f"draw({json.dumps(pose)})", width, height) / 255.0)
        error = np.abs(drawn - expected)
        result[name] = {
            "psnr": psnr(drawn, expected),
            "largest_error": float(error.max()),
            "share_over_3_of_255": float((error.max(axis=-1) > 3 / 255).mean()),
            "same_again": same,
        }
    save_comparison(arguments.output / f"pose_{index:03d}.png", expected, pictures)
    timed = f"(() => {{ const t = performance.now(); draw({json.dumps(pose)}); return performance.now() - t; }})()"
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in pages}
    for round_number in range(arguments.repeats + 1):
        for name, page in pages.items():
            cpu = browser.cpu_seconds()
            wall = page.evaluate(timed)
            if round_number > 0:
                times[name].append((wall, 1e3 * (browser.cpu_seconds() - cpu)))
    for name, values in times.items():
        result[name]["wall_ms"] = statistics.median(wall for wall, _ in values)
        result[name]["cpu_ms"] = statistics.median(cpu for _, cpu in values)
    return result


def save_comparison(path: Path, expected: NDArray[np.floating], pictures: dict[str, NDArray[np.floating]]) -> None:
    """Python's picture beside the others, and below them their errors, four times enlarged."""
    columns = [np.concatenate([expected, np.zeros_like(expected)])]
    columns += [np.concatenate([drawn, 4.0 * np.abs(drawn - expected)]) for drawn in pictures.values()]
    joined = np.round(255.0 * np.concatenate(columns, axis=1).clip(0.0, 1.0)).astype(np.uint8)
    Image.fromarray(joined).save(path)


def summarise(report: dict[str, Any], names: list[str]) -> None:
    """Least PSNR, median times and their ratio, over all poses."""
    for name in names:
        values = [pose[name] for pose in report["poses"].values()]
        report[name] = {
            "least_psnr": min(value["psnr"] for value in values),
            "wall_ms": statistics.median(value["wall_ms"] for value in values),
            "cpu_ms": statistics.median(value["cpu_ms"] for value in values),
        }
    if "official" in names:
        for kind in ("wall", "cpu"):
            ratios = [pose["ours"][f"{kind}_ms"] / pose["official"][f"{kind}_ms"] for pose in report["poses"].values()]
            report[f"{kind}_ratio"] = statistics.median(ratios)


def main() -> None:
    """Measure, write and print."""
    arguments = parse_arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    report = measure(arguments)
    with tempfile.NamedTemporaryFile("w", dir=arguments.output, suffix=".json", delete=False) as file:
        json.dump(report, file, indent=2)
    Path(file.name).replace(arguments.output / "report.json")
    brief = {key: value for key, value in report.items() if key not in ("poses", "browser", "schema_version")}
    print(json.dumps(brief, indent=2))


if __name__ == "__main__":
    main()
