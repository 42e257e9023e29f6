"""The small HTTP server behind `radcomp serve`: the viewer's static files at /, one folder's files at /asset/.

It only reads, only below the folders it was given, and listens on the loopback interface unless told otherwise. It
knows what streaming a baked scene wants: a file that lies there only as X.gz is answered as X with `Content-Encoding:
gzip` (the official SMERF viewer asks for it so), text is compressed on the way, parts of files can be had by `Range`,
and every answer has an ETag, so that what a browser has already costs it one short question.
"""

import errno
import gzip
import mimetypes
import os
import re
import socket
import sys
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from radcomp_plugins.errors import InputError

STATIC = Path(__file__).resolve().parent / "static"
"""The viewer's own files; any static host can serve them as they are."""

PROGRESSIVE = "scene.vqad"
"""A VQ-AD scene, which is read by byte ranges; our browser viewer does not draw it."""
CHUNK_BYTES = 1 << 18
MAX_COMPRESSED_TEXT = 16 * 2**20
"""Larger text files are sent as they are: compressing them would hold them in memory."""
SMALLEST_COMPRESSED_TEXT = 1024
TIMEOUT_SECONDS = 60.0

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".raw": "application/octet-stream",
    ".gz": "application/gzip",
    ".png": "image/png",
}
COMPRESSIBLE = (".html", ".css", ".js", ".json", ".svg", ".txt", ".glsl")


@dataclass(frozen=True)
class Found:
    """A file that answers a request.

    Attributes:
        path: the file to read.
        content_type: of what the URL names, which is not the .gz when `encoded`.
        encoded: whether `path` is the gzip of what the URL names.
    """

    path: Path
    content_type: str
    encoded: bool = False


class Refused(Exception):
    """A request that is answered with an error status.

    Attributes:
        status: of the answer.
        size: of the file, where a part of it was asked for that it does not have.
    """

    def __init__(self, status: HTTPStatus, reason: str, size: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.size = status, size


def find_file(roots: Mapping[str, Path], url_path: str) -> Found:
    """The file behind the path of a URL.

    Args:
        roots: Folders by the prefix they are served under, each prefix with a slash at either end.
        url_path: As the request has it, percent-encoded, without the query.

    Raises:
        Refused: There is no such file, or the path would leave its folder: by `..`, an encoded slash or backslash, an
            absolute path, or a symbolic link.
    """
    parts = url_path.split("/")
    if parts[0] != "":
        raise Refused(HTTPStatus.BAD_REQUEST, "the path has to begin with /")
    names = [urllib.parse.unquote(part, errors="strict") for part in parts[1:]]
    prefix = max((p for p in roots if url_path.startswith(p)), key=len, default=None)
    if prefix is None:
        raise Refused(HTTPStatus.NOT_FOUND, "no such file")
    names = names[prefix.count("/") - 1 :]
    if names[-1] == "":
        names[-1] = "index.html"
    for name in names:
        # Dot files are the temporary names that our own writers use.
        if not name or name.startswith(".") or any(c in name for c in "/\\:\0") or not name.isprintable():
            raise Refused(HTTPStatus.FORBIDDEN, "the path leaves the folder that is served")
    root = roots[prefix].resolve()
    path = root.joinpath(*names)
    suffix = path.suffix.lower()
    content_type = CONTENT_TYPES.get(suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    for candidate, encoded in ((path, False), (path.with_name(path.name + ".gz"), True)):
        if candidate.is_file():
            if not candidate.resolve().is_relative_to(root):
                raise Refused(HTTPStatus.FORBIDDEN, "the path leaves the folder that is served")
            return Found(candidate, content_type, encoded)
    raise Refused(HTTPStatus.NOT_FOUND, "no such file")


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte that a `Range` header asks for, or None where the whole file is the right answer.

    Several ranges at once, other units and nonsense are answered with the whole file, as RFC 9110 allows.

    Raises:
        Refused: The range lies outside of the file.
    """
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", header.strip()) if header else None
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        length = min(int(last), size)
        start, stop = size - length, size - 1
    else:
        start, stop = int(first), min(int(last) if last else size - 1, size - 1)
        if last and int(last) < int(first):
            return None
    if start >= size or stop < start:
        raise Refused(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"the file has {size} bytes", size)
    return start, stop


def accepts_gzip(header: str | None) -> bool | None:
    """What an `Accept-Encoding` header says of gzip; None where there is no header, so that anything goes."""
    if header is None:
        return None
    weights: dict[str, float] = {}
    for item in header.lower().split(","):
        name, _, parameter = item.strip().partition(";")
        match = re.fullmatch(r"\s*q=([01](?:\.\d{0,3})?)\s*", parameter)
        weights[name.strip()] = float(match.group(1)) if match else 1.0
    return weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0))) > 0.0


@lru_cache(maxsize=128)
def compressed_text(path: Path, mtime_ns: int, size: int) -> bytes:
    """The gzip of a text file; the time and size are there for the cache to notice a change."""
    return gzip.compress(path.read_bytes(), compresslevel=6, mtime=0)


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD from the server's folders."""

    server: "AssetServer"
    protocol_version = "HTTP/1.1"
    server_version = "radcomp"
    sys_version = ""
    timeout = TIMEOUT_SECONDS

    def do_GET(self) -> None:  # noqa: N802 - the name is http.server's
        """Answer with a file."""
        self._answer()

    def do_HEAD(self) -> None:  # noqa: N802
        """Answer with a file's headers."""
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a browser asks for dozens of files."""

    def _answer(self) -> None:
        url_path = self.path.split("?", 1)[0].split("#", 1)[0]
        try:
            self._send(find_file(self.server.roots, url_path))
        except Refused as error:
            self._refuse(error.status, str(error), error.size)
        except UnicodeDecodeError:
            self._refuse(HTTPStatus.BAD_REQUEST, "the path is not UTF-8")
        except PermissionError:
            self._refuse(HTTPStatus.FORBIDDEN, "the file cannot be read")

    def _send(self, found: Found) -> None:
        with open(found.path, "rb") as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            accepts = accepts_gzip(self.headers.get("Accept-Encoding"))
            if found.encoded and accepts is False:
                raise Refused(HTTPStatus.NOT_ACCEPTABLE, "the file lies here compressed with gzip only")
            text = found.path.suffix.lower() in COMPRESSIBLE
            squeeze = bool(accepts) and text and SMALLEST_COMPRESSED_TEXT <= size <= MAX_COMPRESSED_TEXT
            encoded = found.encoded or squeeze
            etag = f'"{status.st_mtime_ns:x}-{size:x}{"-gz" if encoded else ""}"'
            headers = {
                "Content-Type": found.content_type,
                "ETag": etag,
                "Last-Modified": formatdate(status.st_mtime, usegmt=True),
                # Kept by the browser, but asked about each time: an asset may be exported anew under the same name.
                "Cache-Control": "no-cache",
                "Vary": "Accept-Encoding",
                "X-Content-Type-Options": "nosniff",
            }
            if encoded:
                headers["Content-Encoding"] = "gzip"
            else:
                headers["Accept-Ranges"] = "bytes"
            if self._known(etag):
                self._begin(HTTPStatus.NOT_MODIFIED, headers)
                return
            if squeeze:
                body = compressed_text(found.path, status.st_mtime_ns, size)
                self._begin(HTTPStatus.OK, {**headers, "Content-Length": str(len(body))})
                if self.command != "HEAD":
                    self.wfile.write(body)
                return
            part = None
            if not encoded and self.headers.get("If-Range", etag) == etag:
                part = parse_range(self.headers.get("Range"), size)
            start, stop = (0, size - 1) if part is None else part
            headers["Content-Length"] = str(stop - start + 1)
            if part is not None:
                headers["Content-Range"] = f"bytes {start}-{stop}/{size}"
            self._begin(HTTPStatus.OK if part is None else HTTPStatus.PARTIAL_CONTENT, headers)
            if self.command != "HEAD":
                file.seek(start)
                self._copy(file, stop - start + 1)

    def _copy(self, file: Any, count: int) -> None:
        while count > 0:
            chunk = file.read(min(CHUNK_BYTES, count))
            if not chunk:
                # The file shrank while it was read: the promised length cannot be kept, so the connection ends.
                self.close_connection = True
                return
            self.wfile.write(chunk)
            count -= len(chunk)

    def _known(self, etag: str) -> bool:
        asked = self.headers.get("If-None-Match")
        return asked is not None and any(tag.strip() in ("*", etag, f"W/{etag}") for tag in asked.split(","))

    def _begin(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _refuse(self, status: HTTPStatus, reason: str, size: int | None = None) -> None:
        body = f"{status.value} {status.phrase}: {reason}\n".encode()
        headers = {
            "Content-Type": "text/plain; charset=utf-8",
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
        }
        if size is not None:
            headers["Content-Range"] = f"bytes */{size}"
        self._begin(status, headers)
        if self.command != "HEAD":
            self.wfile.write(body)


class AssetServer(ThreadingHTTPServer):
    """Serves the viewer and one asset folder; listens as soon as it is made.

    Args:
        asset: The folder served under /asset/.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        more: Further folders by prefix, for tests that put another viewer beside ours.

    Raises:
        InputError: The folder is no asset, or the address cannot be had.
    """

    daemon_threads = True

    def __init__(
        self, asset: Path, host: str = "127.0.0.1", port: int = 7008, more: Mapping[str, Path] | None = None
    ) -> None:
        self.roots: dict[str, Path] = {"/": STATIC, "/asset/": check_asset(asset), **(more or {})}
        if not 0 <= port <= 65535:
            raise InputError(f"port {port}: expected 1 to 65535, or 0 for any free one")
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), Handler)
        except OSError as error:
            raise InputError(address_problem(error, host, port)) from error

    @property
    def url(self) -> str:
        """Where a browser finds the viewer with the asset opened, or where the progressive file is."""
        host, port = self.server_address[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(str(host), f"[{host}]" if ":" in str(host) else host)
        folder = self.roots["/asset/"]
        if (folder / PROGRESSIVE).is_file():
            return f"http://{host}:{port}/asset/{PROGRESSIVE}"
        inside = sorted(path.parent.name for path in folder.glob("sm_[0-9][0-9][0-9]/scene_params.json"))
        name = inside[0] if inside else "scene_params.json"
        return f"http://{host}:{port}/?asset=/asset/{name}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of browsers that close a connection early; anything else is printed as ever."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def address_problem(error: OSError, host: str, port: int) -> str:
    """One line on why an address cannot be listened on."""
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken: give another one with --port, or --port 0 for any free one"
    if error.errno == errno.EACCES:
        return f"port {port} of {host} needs more rights: give a --port of 1024 or above"
    return f"cannot listen on {host} port {port} ({error.strerror or error}): give an address of this machine as --host"


def check_asset(folder: Path) -> Path:
    """A folder that holds a baked scene or one submodel of it, or a progressive file.

    Raises:
        InputError: It is no folder, or has neither a scene_params.json where one is expected nor a `PROGRESSIVE`.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is {'no folder' if folder.exists() else 'not there'}: give the folder of an asset")
    if (folder / "scene_params.json").is_file() or any(folder.glob("sm_[0-9][0-9][0-9]/scene_params.json")):
        return folder
    if (folder / PROGRESSIVE).is_file():
        return folder
    raise InputError(
        f"{folder} has no scene_params.json, no sm_000/scene_params.json and no {PROGRESSIVE} in it: give the folder "
        "that `ns-export smerf` or `ns-export vqad` wrote"
    )
