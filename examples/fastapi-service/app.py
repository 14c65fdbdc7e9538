"""A FastAPI application that queues work, and does it in the same process: POST and GET /reports/{name}.

A request is answered once its value survives a power cut. The work is done by a task of the application, one
element after the other, and goes on where it was after a restart or a crash.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from fsinbox import AddFailed, AsyncElement, AsyncInbox, InvalidKey

inbox = AsyncInbox(os.environ.get("FSINBOX_DIR", "inbox"))
REPORTS = Path("reports")


class Report(BaseModel):
    """What is asked for."""

    pages: list[str]


async def render(element: AsyncElement) -> None:
    """Do the work: here, write a file. Twice gives the same file."""
    await asyncio.sleep(0.01)  # a call to another service
    if not element.value["pages"]:
        raise ValueError("a report without pages")
    draft = REPORTS / f".{quote(element.key, safe='')}"
    draft.write_text(json.dumps({"pages": len(element.value["pages"])}))
    draft.replace(path_of(element.key))


async def work() -> None:
    """Take, render, acknowledge, until cancelled. What fails is tried again; then it goes to failed/."""
    async for element in inbox:
        try:
            await render(element)
        except Exception as error:
            if element.attempts < 3:
                await element.nack(delay="100ms")
            else:
                await element.fail(repr(error))
        else:
            await element.ack()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Work while the application runs."""
    REPORTS.mkdir(exist_ok=True)
    worker = asyncio.create_task(work())
    yield
    worker.cancel()  # what it has in flight is requeued as the inbox closes
    with suppress(asyncio.CancelledError):
        await worker
    await inbox.close()


app = FastAPI(lifespan=lifespan)


def path_of(name: str) -> Path:
    """Return the file of a report. Names come from clients: a dot or a slash must not lead elsewhere."""
    return REPORTS / f"{quote(name, safe='')}.json"


@app.post("/reports/{name}", status_code=202)
async def ask_for(name: str, report: Report) -> dict[str, str]:
    """Queue a report. 202 means that it survives a power cut; after 503 the client asks again."""
    try:
        return {"outcome": await inbox.add(name, report.model_dump())}
    except InvalidKey as error:
        raise HTTPException(400, str(error)) from error
    except AddFailed as error:  # a full disk, for example
        raise HTTPException(503, str(error)) from error


@app.get("/reports/{name}")
async def read(name: str) -> dict[str, int]:
    """Return a report, once it is done."""
    with suppress(FileNotFoundError):
        done: dict[str, int] = json.loads(path_of(name).read_text())
        return done
    raise HTTPException(404, "it is not done, or was never asked for")
