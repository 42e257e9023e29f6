"""What is wrong with a file of an asset, in four parts, and fields of JSON that are checked as they are taken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from radcomp_plugins.errors import InputError

_SHOWN = 120


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an asset.

    Attributes:
        file: path of the file.
        field: what of it, a JSON key or a word like "bytes".
        got: what was found, as text.
        expected: what has to be there, as text.
    """

    file: str
    field: str
    got: str
    expected: str

    def __str__(self) -> str:
        """As one line."""
        return f"{self.file}: {self.field} is {self.got}, expected {self.expected}"


class AssetError(InputError):
    """A file of an asset is not what it has to be; `problem` says so in parts."""

    def __init__(self, problem: Problem) -> None:
        """The message is the problem's line."""
        super().__init__(str(problem))
        self.problem = problem


def fail(file: Path | str, field: str, got: object, expected: str) -> NoReturn:
    """Raise an `AssetError`; what was found is cut to a length that fits a line."""
    text = got if isinstance(got, str) else repr(got)
    text = text.replace("\n", " ")
    if len(text) > _SHOWN:
        text = text[:_SHOWN] + "..."
    raise AssetError(Problem(str(file), field, text, expected))


@dataclass(frozen=True)
class Fields:
    """The keys of a JSON object from outside; every one is checked when it is asked for.

    Attributes:
        values: the object.
        file: where it is from, for errors.
    """

    values: Mapping[str, Any]
    file: Path | str

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """A whole number from `low` to `high`."""
        value = self._take(name, default, f"a whole number from {low} to {high}")
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            fail(self.file, f'"{name}"', value, f"a whole number from {low} to {high}")
        return value

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        """A number from `low` to `high`."""
        value = self._take(name, default, f"a number from {low:g} to {high:g}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            fail(self.file, f'"{name}"', value, f"a number from {low:g} to {high:g}")
        return float(value)

    def boolean(self, name: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._take(name, default, "true or false")
        if not isinstance(value, bool):
            fail(self.file, f'"{name}"', value, "true or false")
        return value

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str:
        """One of a few words."""
        value = self._take(name, default, " or ".join(choices))
        if value not in choices:
            fail(self.file, f'"{name}"', value, " or ".join(choices))
        return value

    def numbers(self, name: str, count: int) -> list[float]:
        """A list of `count` finite numbers."""
        value = self._take(name, None, f"{count} numbers")
        right = isinstance(value, list) and len(value) == count
        if not right or any(isinstance(x, bool) or not isinstance(x, int | float) for x in value):
            fail(self.file, f'"{name}"', value, f"{count} numbers")
        if any(abs(x) > 1e30 for x in value):
            fail(self.file, f'"{name}"', value, f"{count} numbers below 1e30")
        return [float(x) for x in value]

    def integers(self, name: str, low: int, high: int, most: int) -> list[int]:
        """A list of at least one and at most `most` whole numbers from `low` to `high`."""
        expected = f"1 to {most} whole numbers from {low} to {high}"
        value = self._take(name, None, expected)
        if not isinstance(value, list) or not 1 <= len(value) <= most:
            fail(self.file, f'"{name}"', value, expected)
        if any(isinstance(x, bool) or not isinstance(x, int) or not low <= x <= high for x in value):
            fail(self.file, f'"{name}"', value, expected)
        return value

    def mapping(self, name: str) -> "Fields | None":
        """A JSON object, or None where the key is not there."""
        if name not in self.values:
            return None
        value = self.values[name]
        if not isinstance(value, dict):
            fail(self.file, f'"{name}"', value, "an object")
        return Fields(value, self.file)

    def equal(self, name: str, expected: float, default: float | None = None) -> None:
        """Refuse a number other than the one that follows from the rest."""
        value = self._take(name, default, f"{expected:g}")
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or abs(value - expected) > 1e-6 * abs(expected)
        ):
            fail(self.file, f'"{name}"', value, f"{expected:.9g}")

    def _take(self, name: str, default: Any, expected: str) -> Any:
        value = self.values.get(name, default)
        if value is None and default is None:
            fail(self.file, f'"{name}"', "missing" if name not in self.values else "null", expected)
        return value
