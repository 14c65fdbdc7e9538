"""The command of a storm's `fsinbox consume --exec`: announces what it is given, and ends in every way there
is.

    python -S -E heard.py FOLDER WHO        the payload is its standard input, the key $FSINBOX_KEY

It is started for each element, so it imports nothing of the project: tests/driver.py has the form of the
lines, and of the payload.
"""

import os
import sys
from time import monotonic_ns
from zlib import crc32

folder, who = sys.argv[1:]
data = sys.stdin.buffer.read()
line = data.partition(b"\n")[0] + b"\n"
last = b"end of " + line
value = line[:-1].decode() if data == line * ((len(data) - len(last)) // len(line)) + last else "TORN"
key = os.environ["FSINBOX_KEY"]

# A log for each process: a killed one may leave half a line.
log = os.open(f"{folder}/logs/{who}.{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
os.write(log, f"deliver {who} {key} {value} {monotonic_ns()}\n".encode())
counter = os.open(f"{folder}/heard", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
os.write(counter, b".")

luck = crc32(f"{value} {os.getpid()}".encode()) % 100
status = {0: 75, 1: 1, 2: 65}.get(luck, 0)  # not now; a failed attempt; to failed/; or done
os.write(log, f"{'nack' if status in (75, 1) else 'ack'} {who} {key} - {monotonic_ns()}\n".encode())
sys.exit(status)
