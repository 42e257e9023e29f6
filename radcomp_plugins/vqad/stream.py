"""Reads a `.vqad` file over HTTP level by level, so that there is a picture long before the file is there.

The first request asks for the beginning, which in most files holds the contents, the head and the coarsest level; each
further one asks for the range of one level.
"""

import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

from radcomp_plugins.core.container import Chunk, CutOffError, contents_length, read_chunk, read_contents
from radcomp_plugins.errors import InputError
from radcomp_plugins.vqad.bitstream import MAGIC, MAX_FILE_BYTES, VERSION, Decoded, LevelCoder, check_order
from radcomp_plugins.vqad.head import unpack_head

FIRST_BYTES = 16 * 1024
"""Bytes of the first request."""
TIMEOUT_SECONDS = 30.0
_SMALLEST = 16


class RangeReader:
    """Bytes of a file on a server, of which no byte is asked for twice.

    Attributes:
        url: http or https.
        data: the file's beginning, as far as it was read.
        requests: how many were sent.
    """

    def __init__(self, url: str, timeout: float = TIMEOUT_SECONDS) -> None:
        """Nothing is read yet.

        Raises:
            InputError: the URL has another scheme.
        """
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise InputError(f"{url}: expected a URL that begins with http:// or https://")
        self.url, self.timeout = url, timeout
        self.data, self.requests = b"", 0
        self._etag: str | None = None
        self._size: int | None = None

    def read_to(self, end: int) -> bytes:
        """The file's first `end` bytes, or all of it where it is shorter.

        Raises:
            InputError: the server cannot be reached, refuses, or has another file by now.
        """
        if end > MAX_FILE_BYTES:
            raise InputError(f"{self.url}: {end} bytes are asked for, expected at most {MAX_FILE_BYTES}")
        done = self._size is not None and len(self.data) >= self._size
        if len(self.data) < end and not done:
            self.data += self._fetch(len(self.data), end)
        return self.data[:end]

    def _fetch(self, begin: int, end: int) -> bytes:
        headers = {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        if self._etag is not None:
            headers["If-Range"] = self._etag
        self.requests += 1
        try:
            request = urllib.request.Request(self.url, headers=headers)
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return self._take(answer, begin, end)
        except urllib.error.HTTPError as error:
            raise InputError(f"{self.url}: the server answers {error.code} {error.reason}") from error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", None) or error
            raise InputError(f"{self.url}: cannot be read: {reason}".replace("\n", " ")) from error

    def _take(self, answer: http.client.HTTPResponse, begin: int, end: int) -> bytes:
        """The wanted bytes of an answer, which may be the whole file where a server knows no ranges."""
        if answer.status == 200 and begin == 0:
            data = answer.read(MAX_FILE_BYTES)
            self._size = len(data)
            return data
        if answer.status != 206:
            raise InputError(
                f"{self.url}: the server answers {answer.status} to a request for bytes {begin} to {end - 1}: the file "
                "was replaced, or the server sends no ranges"
            )
        stated = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", answer.headers.get("Content-Range", ""))
        if stated is None or int(stated[1]) != begin or not begin <= int(stated[2]) < end:
            raise InputError(
                f"{self.url}: got Content-Range {answer.headers.get('Content-Range')!r}, expected bytes from {begin}"
            )
        self._size, self._etag = int(stated[3]), answer.headers.get("ETag")
        if self._etag is not None and self._etag.startswith("W/"):
            # A weak tag may not be sent with If-Range.
            self._etag = None
        return answer.read(int(stated[2]) - begin + 1)


def stream_scene(url: str, timeout: float = TIMEOUT_SECONDS) -> Iterator[Decoded]:
    """The scene at its coarsest level, then with each further level as soon as it is there.

    Args:
        url: of a `.vqad` file, on a server that knows byte ranges; on others the whole file is read at once.
        timeout: seconds without an answer after which to give up.

    Yields:
        What the file holds up to a level; each one's scene shares the levels of those before.

    Raises:
        CutOffError: the file ends before its contents say, and not even the coarsest level is there.
        InputError: the server cannot be reached, or the file is damaged, of another kind, or newer than this program.
    """
    reader = RangeReader(url, timeout)
    yield from decode_stream(reader)


def decode_stream(reader: RangeReader) -> Iterator[Decoded]:
    """`stream_scene` of a reader, which can be asked for what was transferred."""
    url = reader.url
    chunks = check_order(_contents(reader), url)
    scene = unpack_head(read_chunk(reader.read_to(chunks[0].end), chunks[0], url), url)
    coder = LevelCoder(scene.num_features)
    for place, chunk in enumerate(chunks[1:], start=1):
        try:
            body = read_chunk(reader.read_to(chunk.end), chunk, url)
        except CutOffError:
            if place == 1:
                raise
            return
        scene.levels.append(coder.decode(chunk.number, body, f"{url}: level {chunk.number}"))
        yield Decoded(
            scene=scene.truncated(chunk.number),
            chunks=chunks,
            missing=[later.number for later in chunks[place + 1 :]],
            bytes_read=chunk.end,
        )


def _contents(reader: RangeReader) -> list[Chunk]:
    data = reader.read_to(FIRST_BYTES)
    needed = contents_length(data[: max(_SMALLEST, len(MAGIC))], MAGIC, reader.url)
    return read_contents(reader.read_to(max(needed, len(data))), MAGIC, VERSION, reader.url)
