"""What the bytes of a splat file are spent on: the answer that each format module gives for its own files."""

from collections.abc import Iterable
from dataclasses import dataclass

ATTRIBUTES = (
    "means",
    "quats",
    "scales",
    "opacities",
    "sh0",
    "sh0 and opacities",
    "shN",
    "shN palette",
    "shN labels",
    "all attributes",
    "header",
    "other",
)
"""What a part can be for, in the order of reports; two at once where a format packs them together."""


@dataclass(frozen=True)
class Part:
    """Bytes of a file that serve one purpose.

    Attributes:
        attribute: One of `ATTRIBUTES`.
        name: What the format calls them.
        bytes: In the file.
        unpacked: Before the gzip or zstd that the format ends with; None in formats without.
    """

    attribute: str
    name: str
    bytes: int
    unpacked: int | None = None


@dataclass(frozen=True)
class FileParts:
    """A whole file.

    Attributes:
        count: Gaussians stored, those that a reader leaves out included.
        variant: Version, level or encoding, where the format has several; empty otherwise.
        parts: In the order of the file; their bytes add up to its size.
    """

    count: int
    variant: str
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        """Of all parts."""
        return sum(part.bytes for part in self.parts)

    def by_attribute(self) -> dict[str, int]:
        """Bytes of each attribute that there is, in the order of `ATTRIBUTES`."""
        sizes = {name: sum(p.bytes for p in self.parts if p.attribute == name) for name in ATTRIBUTES}
        return {name: size for name, size in sizes.items() if size}


def file_parts(count: int, variant: str, parts: Iterable[Part], size: int) -> FileParts:
    """Parts without the empty ones, and what is left of a file of `size` bytes as one more.

    It is negative where attributes share bytes, as those of a .glb may: the sum stays that of the file.
    """
    kept = [part for part in parts if part.bytes]
    left = size - sum(part.bytes for part in kept)
    return FileParts(count, variant, (*kept, Part("other", "rest", left)) if left else tuple(kept))
