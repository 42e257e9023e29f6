"""A file over HTTP: what is asked for, and what happens when a server or a file is not what it should be."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from vqad_scenes import assert_same_scene, toy_scene

from radcomp_plugins.core.container import CutOffError
from radcomp_plugins.errors import InputError
from radcomp_plugins.vqad import stream
from radcomp_plugins.vqad.bitstream import decode_scene, encode_scene
from radcomp_plugins.vqad.stream import RangeReader, decode_stream, stream_scene
from radcomp_plugins.web.server import AssetServer


@pytest.fixture(scope="module")
def scene():
    return toy_scene((2, 3, 4))


@pytest.fixture(scope="module")
def data(scene) -> bytes:
    return encode_scene(scene)


@contextmanager
def served(folder: Path) -> Iterator[AssetServer]:
    with AssetServer(folder, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/scene.vqad"
        server.shutdown()


def test_levels_come_one_by_one_each_as_a_prefix_would_give(tmp_path, scene, data, monkeypatch) -> None:
    (tmp_path / "scene.vqad").write_bytes(data)
    monkeypatch.setattr(stream, "FIRST_BYTES", 100)
    with served(tmp_path) as server:
        assert server.url.endswith("/asset/scene.vqad")
        reader = RangeReader(server.url)
        seen = 0
        for seen, decoded in enumerate(decode_stream(reader), start=1):
            assert_same_scene(decoded.scene, scene.truncated(scene.levels[seen - 1].level))
            assert decoded.bytes_read == len(reader.data) == decode_scene(data[: decoded.bytes_read]).bytes_read
            assert decoded.missing == [level.level for level in scene.levels[seen:]]
        assert seen == 3 and reader.data == data
        # The beginning, what is left of the head, and each level.
        assert reader.requests == 5


def test_one_request_is_enough_for_a_small_file(tmp_path, data) -> None:
    (tmp_path / "scene.vqad").write_bytes(data)
    with served(tmp_path) as server:
        reader = RangeReader(server.url)
        assert len(list(decode_stream(reader))) == 3
        assert reader.requests == (1 if len(data) <= stream.FIRST_BYTES else 2)


def test_a_server_without_ranges_sends_the_whole(data, scene) -> None:
    def whole(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    with answering(whole) as url:
        assert_same_scene(list(stream_scene(url))[-1].scene, scene)


def test_a_cut_file_gives_what_it_holds(tmp_path, data, monkeypatch) -> None:
    monkeypatch.setattr(stream, "FIRST_BYTES", 64)
    chunks = decode_scene(data).chunks
    for size, count in ((len(data) - 1, 2), (chunks[2].end, 2), (chunks[1].end, 1)):
        (tmp_path / "scene.vqad").write_bytes(data[:size])
        with served(tmp_path) as server:
            found = list(stream_scene(server.url))
            assert len(found) == count and found[-1].note is not None
    (tmp_path / "scene.vqad").write_bytes(data[: chunks[1].end - 1])
    with served(tmp_path) as server, pytest.raises(CutOffError, match="cut off"):
        list(stream_scene(server.url))


def test_a_damaged_level_is_refused_after_those_before(tmp_path, data, monkeypatch) -> None:
    broken = bytearray(data)
    broken[-2] ^= 4
    (tmp_path / "scene.vqad").write_bytes(bytes(broken))
    with served(tmp_path) as server:
        levels = stream_scene(server.url)
        assert next(levels).scene.levels[-1].level == 2
        assert next(levels).scene.levels[-1].level == 3
        with pytest.raises(InputError, match="checksum of chunk LEVL4"):
            next(levels)


def test_a_file_replaced_on_the_way_is_noticed(tmp_path, data, monkeypatch) -> None:
    monkeypatch.setattr(stream, "FIRST_BYTES", 200)
    path = tmp_path / "scene.vqad"
    path.write_bytes(data)
    with served(tmp_path) as server:
        levels = stream_scene(server.url)
        next(levels)
        path.write_bytes(data + b"more")
        with pytest.raises(InputError, match="replaced"):
            list(levels)


def test_servers_that_lie(data) -> None:
    def shifted(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 5-9/{len(data)}")
        handler.end_headers()
        handler.wfile.write(data[5:10])

    with answering(shifted) as url, pytest.raises(InputError, match="Content-Range"):
        list(stream_scene(url))
    with answering(lambda handler: handler.send_error(404)) as url, pytest.raises(InputError, match="404"):
        list(stream_scene(url))


def test_urls_that_cannot_be_read() -> None:
    with pytest.raises(InputError, match="http"):
        RangeReader("file:///etc/hostname")
    with pytest.raises(InputError, match="cannot be read"):
        list(stream_scene("http://127.0.0.1:9/scene.vqad", timeout=2.0))
