"""thumbnail.py PICTURE: write a small copy of a picture (PPM, binary) to thumbs/.

For `fsinbox consume --exec 'python thumbnail.py {}'`. The exit status says what becomes of the element: 0, it
is acknowledged; 65, it goes to failed/ at once, with what was printed; any other, it is tried again.
"""

import os
import re
import sys
from pathlib import Path
from urllib.parse import quote

SIZE = 32
"""Pixels of the longer side, at most."""

NOT_A_PICTURE = 65
"""EX_DATAERR of sysexits.h: no later try can succeed."""

THUMBS = Path("thumbs")


def shrink(picture: bytes) -> bytes:
    """Return the picture with every n-th pixel of every n-th line. Raises ValueError."""
    header = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", picture)
    if not header:
        raise ValueError("it does not begin as a PPM file does: P6, width, height, 255")
    width, height = int(header[1]), int(header[2])
    pixels = picture[header.end() :]
    size = 3 * width * height
    if not 0 < size == len(pixels):
        raise ValueError(f"{width} x {height} pixels need {size} bytes, {len(pixels)} are there")
    step = -(-max(width, height) // SIZE)
    lines = [
        b"".join(pixels[3 * (y * width + x) :][:3] for x in range(0, width, step))
        for y in range(0, height, step)
    ]
    return b"P6 %d %d 255\n" % (len(lines[0]) // 3, len(lines)) + b"".join(lines)


def main(path: str) -> None:
    """Write the thumbnail of the picture at `path`, named after the element's key."""
    try:
        small = shrink(Path(path).read_bytes())
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(NOT_A_PICTURE)
    THUMBS.mkdir(exist_ok=True)
    name = quote(os.environ["FSINBOX_KEY"], safe="")  # keys come from others: no path as they stand
    draft = THUMBS / f".{name}"
    draft.write_bytes(small)
    draft.replace(THUMBS / name)


if __name__ == "__main__":
    main(sys.argv[1])
