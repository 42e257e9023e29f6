"""Numbers survive the WebP encoder, and its header is judged before anything is decoded."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from radcomp_plugins.errors import InputError
from radcomp_plugins.splats.formats.webp import decode_webp, encode_webp


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("kind", ["noise", "smooth", "constant"])
def test_lossless(channels: int, kind: str) -> None:
    shape = (12, 20, channels)
    pixels = {
        "noise": np.random.default_rng(0).integers(0, 256, shape),
        "smooth": np.add.outer(np.arange(12), np.arange(20))[..., None] * np.ones(channels, int) * 3,
        "constant": np.full(shape, 7),
    }[kind].astype(np.uint8)
    if channels == 4:
        pixels[:6, :, 3] = 0
    read = decode_webp(encode_webp(pixels), "a.webp", min_pixels=240, max_pixels=240)
    assert read.shape == (12, 20, 4)
    np.testing.assert_array_equal(read[..., :channels], pixels)
    assert channels == 4 or (read[..., 3] == 255).all()


def test_no_larger_than_the_slowest_setting() -> None:
    pixels = (np.random.default_rng(0).normal(size=(64, 64, 3)) * 20 + 128).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, quality=100, method=6, exact=True)
    assert len(encode_webp(pixels)) <= 1.01 * len(buffer.getvalue())


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def test_an_extended_container_is_read() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4)).astype(np.uint8)
    plain = encode_webp(pixels)
    extended = riff((b"VP8X", bytes([0x10, 0, 0, 0, 7, 0, 0, 7, 0, 0])), (b"VP8L", plain[20:]))
    np.testing.assert_array_equal(decode_webp(extended, "a", min_pixels=1, max_pixels=64), pixels)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "expected a WebP"),
        (b"RIFF\0\0\0\0WAVE" + bytes(20), "expected a WebP"),
        (riff(), "no lossless WebP"),
        (riff((b"VP8 ", bytes(20))), "lossy"),
        (riff((b"VP8X", bytes(10)), (b"ANIM", bytes(6))), "lossy or moving"),
        (riff((b"VP8L", b"\0" * 20)), "no lossless WebP"),
        (riff((b"VP8L", b"\x2f" + struct.pack("<I", 7 | 7 << 14) + bytes(20))), "cannot be decoded"),
        (riff((b"VP8L", b"\x2f" + struct.pack("<I", 8 | 7 << 14) + bytes(20))), "is 9x8 pixels"),
        (riff((b"VP8L", b"\x2f" + struct.pack("<I", 3 | 3 << 14) + bytes(20))), "is 4x4 pixels"),
        (b"RIFF\0\0\0\0WEBPjunk" + struct.pack("<I", 2**32 - 1) + bytes(40), "no lossless WebP"),
    ],
)
def test_hostile_images_are_one_line(data: bytes, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as error:
        decode_webp(data, "a.webp", min_pixels=64, max_pixels=64)
    assert "\n" not in str(error.value) and "a.webp" in str(error.value)
