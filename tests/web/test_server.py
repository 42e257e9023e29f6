"""The asset server on real sockets: what it sends, what it compresses and remembers, and what it refuses."""

import gzip
import http.client
import io
import os
import socket
import threading
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from radcomp_plugins.errors import InputError
from radcomp_plugins.web import server as server_module
from radcomp_plugins.web.server import STATIC, AssetServer, Handler, accepts_gzip, parse_range

RAW = bytes(range(256)) * 20
SECRET = b"not for you"


@pytest.fixture
def asset(tmp_path: Path) -> Path:
    """A folder with the kinds of files that an asset has, and a secret beside it."""
    folder = tmp_path / "asset"
    (folder / "sm_000").mkdir(parents=True)
    (tmp_path / "secret.raw").write_bytes(SECRET)
    (tmp_path / "secret.json").write_bytes(SECRET)
    (folder / "sm_000" / "scene_params.json").write_text('{"a": [' + "1, " * 2000 + "1]}")
    (folder / "sm_000" / "plane_rgb_0.raw.gz").write_bytes(gzip.compress(RAW))
    (folder / "sm_000" / "plain.raw").write_bytes(RAW)
    (folder / "sm_000" / "empty.raw").write_bytes(b"")
    (folder / "sm_000" / ".plane.partial").write_bytes(b"half")
    (folder / "sm_000" / "\nstrange").write_bytes(b"half")
    (folder / "inside.raw").symlink_to(folder / "sm_000" / "plain.raw")
    (folder / "outside.raw").symlink_to(tmp_path / "secret.raw")
    (folder / "outside").symlink_to(tmp_path)
    (folder / "linked.raw.gz").symlink_to(tmp_path / "secret.raw")
    return folder


@pytest.fixture
def server(asset: Path) -> Iterator[AssetServer]:
    """The server on a free port, answering in a thread."""
    with AssetServer(asset, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def ask(
    server: AssetServer, path: str, headers: dict[str, str] | None = None, method: str = "GET"
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request with exactly these headers and this path, nothing normalised."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.putrequest(method, path, skip_accept_encoding=True)
    for name, value in (headers or {}).items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_viewer_is_at_the_root(server: AssetServer):
    answer, body = ask(server, "/?asset=/asset")
    assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/html")
    assert body == (STATIC / "index.html").read_bytes()
    answer, body = ask(server, "/main.js")
    assert answer.status == 200 and answer.headers["Content-Type"].startswith("text/javascript")
    assert server.url == f"http://127.0.0.1:{server.server_address[1]}/?asset=/asset/sm_000"


@pytest.mark.parametrize("host, shown", [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]")])
def test_address_that_a_browser_can_open(asset: Path, host: str, shown: str):
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 on this machine")
    with AssetServer(asset, host=host, port=0) as server:
        assert server.url == f"http://{shown}:{server.server_address[1]}/?asset=/asset/sm_000"


def test_address_of_a_single_submodel(asset: Path):
    with AssetServer(asset / "sm_000", port=0) as server:
        assert server.url.endswith("/?asset=/asset/scene_params.json")


def test_every_module_that_the_viewer_imports_is_there():
    for path in STATIC.glob("*.js"):
        for line in path.read_text().splitlines():
            if line.startswith(("import ", "} from ", "export * from")) and " from " in line:
                name = line.rsplit(" from ", 1)[1].strip("\"';")
                assert name.startswith("./") and (STATIC / name).is_file(), f"{path.name} imports {name}"


def test_viewer_needs_no_other_host():
    for path in STATIC.iterdir():
        text = path.read_text()
        assert "http://" not in text and "https://" not in text, path.name


def test_plain_file(server: AssetServer, asset: Path):
    answer, body = ask(server, "/asset/sm_000/plain.raw", {"Accept-Encoding": "gzip"})
    assert (answer.status, body) == (200, RAW)
    assert answer.headers["Content-Length"] == str(len(RAW)) and "Content-Encoding" not in answer.headers
    assert answer.headers["X-Content-Type-Options"] == "nosniff" and answer.headers["Accept-Ranges"] == "bytes"
    changed = (asset / "sm_000" / "plain.raw").stat().st_mtime
    assert answer.headers["Last-Modified"] == formatdate(changed, usegmt=True)


def test_file_that_lies_there_compressed(server: AssetServer, asset: Path):
    stored = (asset / "sm_000" / "plane_rgb_0.raw.gz").read_bytes()
    for accept in ({"Accept-Encoding": "gzip, br"}, {"Accept-Encoding": "*"}, {}):
        answer, body = ask(server, "/asset/sm_000/plane_rgb_0.raw", accept)
        assert answer.status == 200 and answer.headers["Content-Encoding"] == "gzip"
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert body == stored and gzip.decompress(body) == RAW
    # Under its own name it is a file like any other.
    answer, body = ask(server, "/asset/sm_000/plane_rgb_0.raw.gz", {"Accept-Encoding": "gzip"})
    assert body == stored and "Content-Encoding" not in answer.headers
    assert answer.headers["Content-Type"] == "application/gzip"
    answer, _ = ask(server, "/asset/sm_000/plane_rgb_0.raw", {"Accept-Encoding": "identity"})
    assert answer.status == 406


def test_text_is_compressed_for_those_who_ask(server: AssetServer, asset: Path):
    plain = (asset / "sm_000" / "scene_params.json").read_bytes()
    answer, body = ask(server, "/asset/sm_000/scene_params.json", {"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip" and len(body) < len(plain) / 10
    assert gzip.decompress(body) == plain
    answer, body = ask(server, "/asset/sm_000/scene_params.json")
    assert "Content-Encoding" not in answer.headers and body == plain
    (asset / "sm_000" / "scene_params.json").write_bytes(b" " * 3000)
    answer, body = ask(server, "/asset/sm_000/scene_params.json", {"Accept-Encoding": "gzip"})
    assert gzip.decompress(body) == b" " * 3000, "a changed file is compressed anew"


def test_long_text_is_not_compressed_in_memory(server: AssetServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server_module, "MAX_COMPRESSED_TEXT", 2000)
    answer, _ = ask(server, "/asset/sm_000/scene_params.json", {"Accept-Encoding": "gzip"})
    assert answer.status == 200 and "Content-Encoding" not in answer.headers


def test_head_has_the_headers_alone(server: AssetServer):
    for path in ("/asset/sm_000/plain.raw", "/asset/sm_000/plane_rgb_0.raw", "/asset/sm_000/scene_params.json", "/x"):
        full, body = ask(server, path, {"Accept-Encoding": "gzip"})
        head, nothing = ask(server, path, {"Accept-Encoding": "gzip"}, "HEAD")
        assert nothing == b"" and head.status == full.status
        assert head.headers["Content-Length"] == str(len(body)) == full.headers["Content-Length"]


def test_what_is_known_is_not_sent_again(server: AssetServer, asset: Path):
    for path in ("/asset/sm_000/plain.raw", "/asset/sm_000/plane_rgb_0.raw", "/asset/sm_000/scene_params.json"):
        first, _ = ask(server, path, {"Accept-Encoding": "gzip"})
        assert first.headers["Cache-Control"] == "no-cache" and first.headers["Vary"] == "Accept-Encoding"
        known = {"Accept-Encoding": "gzip", "If-None-Match": f'"other", {first.headers["ETag"]}'}
        again, body = ask(server, path, known)
        assert again.status == 304 and body == b"" and again.headers["ETag"] == first.headers["ETag"]
        for tag in ("*", f"W/{first.headers['ETag']}"):
            assert ask(server, path, {"Accept-Encoding": "gzip", "If-None-Match": tag})[0].status == 304
    (asset / "sm_000" / "plain.raw").write_bytes(RAW[::-1] + b"x")
    first, body = ask(server, "/asset/sm_000/plain.raw", {"If-None-Match": first.headers["ETag"]})
    assert first.status == 200 and body == RAW[::-1] + b"x"
    # Of the same size, a second later.
    os.utime(asset / "sm_000" / "plain.raw", (0, (asset / "sm_000" / "plain.raw").stat().st_mtime + 1))
    assert ask(server, "/asset/sm_000/plain.raw", {"If-None-Match": first.headers["ETag"]})[0].status == 200


def test_encodings_have_tags_of_their_own(server: AssetServer):
    path = "/asset/sm_000/scene_params.json"
    tags = {ask(server, path, accept)[0].headers["ETag"] for accept in ({}, {"Accept-Encoding": "gzip"})}
    assert len(tags) == 2


@pytest.mark.parametrize(
    ("header", "part"),
    [("bytes=0-0", (0, 0)), ("bytes=100-199", (100, 199)), ("bytes=5000-", (5000, 5119)), ("bytes=-7", (5113, 5119)),
     ("bytes=5119-99999", (5119, 5119)), ("bytes=-99999", (0, 5119))],
)  # fmt: skip
def test_ranges(server: AssetServer, header: str, part: tuple[int, int]):
    answer, body = ask(server, "/asset/sm_000/plain.raw", {"Range": header})
    assert answer.status == 206 and body == RAW[part[0] : part[1] + 1]
    assert answer.headers["Content-Range"] == f"bytes {part[0]}-{part[1]}/{len(RAW)}"
    assert answer.headers["Content-Length"] == str(len(body))


@pytest.mark.parametrize("header", ["bytes=9-5", "bytes=-", "bytes=a-b", "lines=1-2", "bytes=0-1,3-4", "", "bytes=1"])
def test_ranges_that_mean_nothing_get_the_whole(server: AssetServer, header: str):
    answer, body = ask(server, "/asset/sm_000/plain.raw", {"Range": header})
    assert (answer.status, body) == (200, RAW)


def test_ranges_outside_of_the_file(server: AssetServer):
    for header in ("bytes=5120-", "bytes=99999-100000", "bytes=-0"):
        answer, _ = ask(server, "/asset/sm_000/plain.raw", {"Range": header})
        assert answer.status == 416 and answer.headers["Content-Range"] == f"bytes */{len(RAW)}"
    answer, body = ask(server, "/asset/sm_000/empty.raw", {"Range": "bytes=0-"})
    assert answer.status == 416
    answer, body = ask(server, "/asset/sm_000/empty.raw")
    assert (answer.status, body) == (200, b"")


def test_a_range_of_what_is_sent_compressed_is_the_whole(server: AssetServer):
    answer, body = ask(server, "/asset/sm_000/plane_rgb_0.raw", {"Accept-Encoding": "gzip", "Range": "bytes=0-3"})
    assert answer.status == 200 and gzip.decompress(body) == RAW


def test_a_file_that_shrinks_on_the_way_ends_the_connection():
    handler = Handler.__new__(Handler)
    handler.wfile, handler.close_connection = io.BytesIO(), False
    handler._copy(io.BytesIO(b"abc"), 3)
    assert not handler.close_connection
    handler._copy(io.BytesIO(b"de"), 3)
    assert handler.close_connection and handler.wfile.getvalue() == b"abcde"


def test_a_range_of_a_changed_file_is_the_whole_file(server: AssetServer):
    headers = {"Range": "bytes=0-3", "If-Range": '"older"'}
    assert ask(server, "/asset/sm_000/plain.raw", headers)[1] == RAW
    headers["If-Range"] = ask(server, "/asset/sm_000/plain.raw")[0].headers["ETag"]
    assert ask(server, "/asset/sm_000/plain.raw", headers)[1] == RAW[:4]


@pytest.mark.parametrize(
    "path",
    [
        "/asset/../secret.raw", "/asset/sm_000/../../secret.raw", "/asset/%2e%2e/secret.raw", "/asset/..%2fsecret.raw",
        "/asset/%2e%2e%2fsecret.raw", "/asset/..%5csecret.raw", "/asset//secret.raw", "/../secret.raw",
        "/asset/%2fsecret.raw", "/asset/sm_000/%00plain.raw", "/asset/outside.raw", "/asset/outside/secret.raw",
        "/asset/linked.raw", "/asset/linked.raw.gz", "/asset/.", "/asset/./sm_000/plain.raw",
        "/asset/sm_000/.plane.partial", "/asset/C:secret.raw", "secret.raw", "/asset/%ff", "/asset/sm_000/%0aplain.raw",
        "/asset/outside/secret.json", "/asset/..;/secret.raw", "/asset/sm_000%2fplain.raw", "/asset/sm_000/%0astrange",
    ],
)  # fmt: skip
def test_nothing_outside_is_served(server: AssetServer, path: str):
    for method in ("GET", "HEAD"):
        answer, body = ask(server, path, {"Accept-Encoding": "gzip"}, method)
        assert answer.status in (400, 403, 404) and SECRET not in body and b"half" not in body
        assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/asset/sm_000", "/asset/sm_000/", "/asset/", "/asset", "/asset/none.raw", "/none"])
def test_folders_are_not_listed(server: AssetServer, path: str):
    answer, body = ask(server, path)
    assert answer.status == 404 and b"plain" not in body


def test_links_inside_are_served(server: AssetServer):
    assert ask(server, "/asset/inside.raw")[1] == RAW


def test_only_reading_is_allowed(server: AssetServer, asset: Path):
    for method in ("POST", "PUT", "DELETE"):
        assert ask(server, "/asset/sm_000/plain.raw", {"Content-Length": "0"}, method)[0].status == 501
    assert (asset / "sm_000" / "plain.raw").read_bytes() == RAW


def test_one_connection_serves_many(server: AssetServer):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    for path, status in (("/asset/sm_000/plain.raw", 200), ("/asset/none", 404), ("/main.js", 200)):
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == status and not answer.will_close
    connection.close()


def test_listens_on_this_machine_only_by_default(server: AssetServer):
    assert server.server_address[0] == "127.0.0.1"


def test_a_taken_port_is_one_line(server: AssetServer, asset: Path):
    port = server.server_address[1]
    with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 is taken.*--port"):
        AssetServer(asset, port=port)


def test_addresses_that_cannot_be(asset: Path):
    with pytest.raises(InputError, match="expected 1 to 65535"):
        AssetServer(asset, port=70000)
    with pytest.raises(InputError, match="cannot listen on 192.0.2.1"):
        AssetServer(asset, host="192.0.2.1", port=0)


def test_folders_that_are_no_assets(tmp_path: Path):
    with pytest.raises(InputError, match="not there"):
        AssetServer(tmp_path / "none", port=0)
    with pytest.raises(InputError, match=r"no scene_params\.json"):
        AssetServer(tmp_path, port=0)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="no folder"):
        AssetServer(tmp_path / "file", port=0)


def test_accept_encoding():
    assert accepts_gzip(None) is None
    assert accepts_gzip("gzip") and accepts_gzip("br, gzip;q=0.5") and accepts_gzip("*") and accepts_gzip("x-gzip")
    for header in ("", "br", "gzip;q=0", "*;q=0", "identity", "gzip;q=0.000, *"):
        assert accepts_gzip(header) is False


def test_parse_range_by_hand():
    assert parse_range("bytes=2-3", 10) == (2, 3)
    assert parse_range("bytes=0-", 10) == (0, 9)
    assert parse_range(None, 10) is None
