"""Times, sizes and rates as people write them: on the command line, in settings, in the environment and in
Python. Imports nothing: `fsinbox add` and the face read them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    Time = float | str | timedelta
    """A length of time: seconds, "1h30m", or a timedelta."""

    Size = int | str
    """Bytes, or "10MB"."""

LONGEST = 1e9
"""Seconds; whoever writes more has made a mistake."""

_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def seconds(value: Time) -> float:
    """Return a length of time in seconds: 90, "90", "90s", "500ms", "15m", "1h30m", a timedelta. Raises
    ValueError."""
    if isinstance(value, str):
        found = _seconds(value)
    elif isinstance(value, (int, float)):
        found = float(value)
    else:
        found = value.total_seconds()
    if not 0 <= found < LONGEST:  # (NaN, too)
        raise ValueError(f"invalid duration {value!r}: use 90, 15m, 2h, 7d or 1h30m")
    return found


def patience(value: Time | None) -> float | None:
    """Return how long to wait in seconds; None: for ever. A number is as it is: less than 0 is not at all."""
    return value if value is None or isinstance(value, (int, float)) else seconds(value)


def checked(**times: Time) -> dict[str, float]:
    """Return lengths of time in seconds, under the same names. Raises ValueError, with the name."""
    found = {}
    for name, value in times.items():
        try:
            found[name] = seconds(value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return found


def size(value: Size) -> int:
    """Return a size in bytes: 1000, "500MB" (powers of 1000), "2G" or "2GiB" (powers of 1024). Raises
    ValueError."""
    text = str(value)
    number, unit = _cut(text, lambda letter: letter in "0123456789.")
    unit = unit.removeprefix(" ").lower()
    base = 1000 if len(unit) == 2 and unit[1] == "b" else 1024
    whole = unit.removesuffix("b").removesuffix("i")
    if not _is_number(number) or unit not in _SIZES or len(text) > _LONG:
        raise ValueError(f"invalid size {value!r}: use 1000, 500MB, 2G or 2GiB")
    return int(float(number) * base ** " kmgt".index(whole or " "))


_LONG = 30
"""Letters of a size that may be meant."""

_SIZES = {"", "b", *(letter + end for letter in "kmgt" for end in ("", "b", "ib"))}


def rate(value: float | str) -> float:
    """Return how many a second: "10/s", "100/m", "1/30s"; a number of them. Raises ValueError."""
    if isinstance(value, float):
        return value
    count, _, time = str(value).partition("/")
    length = _seconds(time if time[:1].isdigit() else f"1{time}")
    if not (time and _is_number(count) and float(count) > 0 and 0 < length < LONGEST):
        raise ValueError(f"invalid rate {value!r}: use 10/s, 100/m, 1000/h or 1/30s")
    return float(count) / length


def _seconds(text: str) -> float:
    """Return a length of time in seconds; -1 if it is not one. Its units get smaller."""
    if _is_number(text):
        return float(text)
    total, left, smallest = 0.0, text, LONGEST
    while left:
        number, left = _cut(left, lambda letter: letter in "0123456789.")
        unit, left = _cut(left, str.isalpha)
        length = _UNITS.get(unit, LONGEST)
        if not _is_number(number) or length >= smallest:
            return -1.0
        total += float(number) * length
        smallest = length
    return total if text else -1.0


def _is_number(text: str) -> bool:
    """Tell whether it is one as people write it: ASCII digits, one point at most."""
    return text.isascii() and text.replace(".", "", 1).isdigit()


def _cut(text: str, belongs: Callable[[str], bool]) -> tuple[str, str]:
    """Return what it begins with of such letters, and the rest."""
    end = next((place for place, letter in enumerate(text) if not belongs(letter)), len(text))
    return text[:end], text[end:]
