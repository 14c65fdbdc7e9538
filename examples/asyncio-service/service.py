"""service.py PORT: a service in one process that accepts work on a socket, and does it, with asyncio.

A client sends a line `KEY VALUE`, and gets `queued` when a power cut can no longer lose it. Four workers
deliver what waits. SIGTERM ends the service; what was in flight is requeued, and comes again at its next
start.
"""

import asyncio
import signal
import sys
from pathlib import Path
from urllib.parse import quote

from fsinbox import AsyncInbox, Element, InboxError

WORKERS = 4
DELIVERED = Path("delivered")


async def accept(inbox: AsyncInbox, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Queue what a client sends, a line at a time."""
    try:
        while line := await reader.readline():
            key, _, value = line.decode().strip().partition(" ")
            try:
                await inbox.add(key, value)
                writer.write(b"queued\n")
            except InboxError as error:  # a key that cannot be, or a full disk
                writer.write(f"refused: {error}\n".encode())
            await writer.drain()
    finally:
        writer.close()


async def deliver(element: Element) -> None:
    """Do the work: here, write a file. Twice gives the same file."""
    await asyncio.sleep(0.01)  # a call to another service
    if element.value == "unreachable":
        raise ConnectionError("the other side does not answer")
    name = quote(element.key, safe="")
    draft = DELIVERED / f".{name}"
    draft.write_text(element.value)
    draft.replace(DELIVERED / name)


async def work(inbox: AsyncInbox) -> None:
    """Take, deliver, acknowledge. What fails is tried again later; after five attempts it goes to failed/."""
    while element := await inbox.take(timeout=None):
        try:
            await deliver(element)
        except Exception as error:
            if element.attempts < 5:
                await element.nack(delay=0.1 * 2**element.attempts)
            else:
                await element.fail(repr(error))
        else:
            await element.ack()


async def main(port: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    DELIVERED.mkdir(exist_ok=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncInbox("inbox", codec="text", max_inflight=WORKERS) as inbox:
        workers = [asyncio.create_task(work(inbox)) for _ in range(WORKERS)]
        server = await asyncio.start_server(
            lambda reader, writer: accept(inbox, reader, writer), "127.0.0.1", port
        )
        print(f"listening on port {server.sockets[0].getsockname()[1]}", flush=True)
        await stop.wait()
        server.close()
        for worker in workers:  # what they have in flight is requeued as the inbox closes
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
