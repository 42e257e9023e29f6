"""`radcomp stream`: draw a scene while its file arrives."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from radcomp_plugins.errors import InputError


@dataclass
class Stream:
    """Fetch a .vqad file level by level, and write a picture after each.

    Example: radcomp serve exports/chair, and beside it
    radcomp stream http://127.0.0.1:7008/asset/scene.vqad --output-dir pictures
    """

    url: tyro.conf.Positional[str]
    """Of a .vqad file, on a server that sends byte ranges."""
    output_dir: Path = Path("stream")
    """Folder for level_5.png and its like; existing pictures are replaced."""
    size: int = 400
    """Width and height of the pictures, in pixels."""
    azimuth: float = 30.0
    """Where the camera stands around the scene's vertical axis, in degrees."""
    elevation: float = 25.0
    """How high it stands, in degrees above the horizon."""
    distance: float = 1.4
    """How far it stands from the middle of the scene's box, in sides of the box."""
    timeout: float = 30.0
    """Seconds without an answer after which to give up."""

    def main(self) -> None:
        """Fetch, draw, and say when what was there."""
        if not 1 <= self.size <= 8192 or not self.distance > 0 or not self.timeout > 0:
            raise InputError(
                f"stream: --size {self.size}, --distance {self.distance}, --timeout {self.timeout}: expected 1 to "
                "8192, and above 0"
            )
        import time

        import numpy as np
        from nerfstudio.utils.rich_utils import CONSOLE
        from PIL import Image

        from radcomp_plugins.core.files import atomic_write
        from radcomp_plugins.vqad.picture import orbit_camera, picture
        from radcomp_plugins.vqad.stream import RangeReader, decode_stream

        reader = RangeReader(self.url, self.timeout)
        begun, decoded = time.perf_counter(), None
        for decoded in decode_stream(reader):
            arrived = time.perf_counter() - begun
            camera = orbit_camera(decoded.scene.box, self.azimuth, self.elevation, self.distance, self.size)
            image = picture(decoded.scene, camera)
            level = decoded.scene.levels[-1].level
            path = self.output_dir / f"level_{level}.png"
            with atomic_write(path) as file:
                Image.fromarray((image.numpy() * 255.0).round().astype(np.uint8)).save(file, "PNG")
            CONSOLE.print(
                f"level {level}: {decoded.bytes_read:>10,} bytes, decoded after {arrived:7.3f} s, drawn after "
                f"{time.perf_counter() - begun:7.3f} s: {path}",
                soft_wrap=True, highlight=False,
            )  # fmt: skip
        if decoded is not None and decoded.note is not None:
            CONSOLE.print(f"[yellow]{self.url}:[/yellow] {decoded.note}", soft_wrap=True)
