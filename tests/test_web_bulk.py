"""`fsinbox web`: changes of all failed elements that match a filter: counted, confirmed, made."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from helpers import keys_in, wait_until
from test_web import Document, Site, change, fail, see, spool, where

from fsinbox import Inbox
from fsinbox.operate.report import Limits
from fsinbox.operate.rows import row_of
from fsinbox.store.names import REASON, element_name, encode_key
from fsinbox.web import bulk, listing
from fsinbox.web.app import make_app
from fsinbox.web.auth import Rules
from fsinbox.web.bulk import Plan, Plans

__all__ = ["spool"]


def without_spaces(page: Document) -> str:
    """Return a page's text, each space once."""
    return " ".join(page.text.split())


def asked(client: httpx.Client, what: str, **narrowed: str) -> Document:
    """Ask for a change of all that match; return the question."""
    fields = [
        field
        for field in see(client, f"/elements/failed?{httpx.QueryParams(narrowed)}").fields()
        if field[0] in ("secret", "q", "why")
    ]
    answer = change(client, "/failed", [*fields, ("matching", what)])
    assert answer.status_code == 200, answer.text
    return Document(answer)


def test_all_that_match_are_retried_once_that_is_confirmed(spool: Path) -> None:
    fail(spool, "user-1", "user-2", "page-1", why="TimeoutError: no answer")
    fail(spool, "user-3", why="KeyError: 'footer'")
    with Site("--allow-changes", cwd=spool.parent) as site, site.client(unlocked=True) as client:
        question = asked(client, "retry", q="USER-*", why="timeout")
        assert "Retry 2 elements?" in question.text
        said = "All failed elements whose key matches “USER-*” and whose reason contains “timeout”."
        assert said in without_spaces(question)
        assert len(keys_in(spool, "failed")) == 4
        fail(spool, "user-4", why="TimeoutError: no answer")
        assert where(change(client, "/failed", question.fields())) == (303, "/elements/failed")
        assert "2 queued again." in see(client, "/elements/failed").text
    assert {"user-1", "user-2"} <= set(keys_in(spool, "pending"))
    assert sorted(keys_in(spool, "failed")) == ["page-1", "user-3", "user-4"]


def test_all_that_match_are_discarded_once_that_is_confirmed(spool: Path) -> None:
    fail(spool, "user-1", "page-1", why="it broke")
    with Site("--allow-changes", cwd=spool.parent) as site, site.client(unlocked=True) as client:
        question = asked(client, "discard", q="user")
        assert "Discard 1 element?" in question.text
        assert "All failed elements whose key contains “user”." in without_spaces(question)
        change(client, "/failed", question.fields())
        assert "1 discarded." in see(client, "/elements/failed").text
        question = asked(client, "discard")
        assert "All failed elements that had failed when this page was made." in without_spaces(question)
        change(client, "/failed", question.fields())
    assert list((spool / "failed").iterdir()) == []


def test_a_filter_that_matches_nothing_changes_nothing(spool: Path) -> None:
    fail(spool, "user-1")
    with Site("--allow-changes", cwd=spool.parent) as site, site.client(unlocked=True) as client:
        (secret,) = see(client, "/").fields()
        answer = change(client, "/failed", [secret, ("matching", "discard"), ("why", "no such reason")])
        assert answer.status_code == 400 and "No element was chosen" in answer.text
    assert keys_in(spool, "failed") == ["user-1"]


@pytest.mark.parametrize("fields", [[], [("secret", "guess")]])
def test_neither_question_nor_confirmation_work_without_the_session_s_secret(
    spool: Path, fields: list[tuple[str, str]]
) -> None:
    fail(spool, "user-1")
    with Site("--allow-changes", cwd=spool.parent) as site, site.client(unlocked=True) as client:
        plan = [field for field in asked(client, "discard").fields() if field[0] == "plan"]
        for more in ([("matching", "discard")], plan):
            assert change(client, "/failed", [*fields, *more]).status_code == 403
            with site.client() as stranger:
                assert change(stranger, "/failed", [*fields, *more]).status_code == 403
            answer = change(
                client, "/failed", [*asked(client, "discard").fields()], Origin="http://evil.example"
            )
            assert answer.status_code == 403
        with site.client(unlocked=True) as other:  # a plan is its visitor's
            (secret,) = see(other, "/").fields()
            assert change(other, "/failed", [secret, *plan]).status_code == 400
    assert keys_in(spool, "failed") == ["user-1"]


def test_the_list_is_narrowed_by_key_and_reason_on_each_of_its_pages(spool: Path) -> None:
    fail(spool, *(f"user-{number}" for number in range(60)), why="TimeoutError: no answer")
    fail(spool, "user-x", why="KeyError: 'footer'")
    (spool / "failed/1-no-reason").write_bytes(b"")
    with Site(cwd=spool.parent) as site, site.client() as client:
        page = see(client, "/elements/failed?q=user&why=timeouterror")
        assert "60 elements whose key contains “user” and whose reason contains “timeouterror”" in (
            without_spaces(page)
        )
        (following,) = {link for link in page.links("?") if link.endswith("page=2")}
        assert len(set(see(client, f"/elements/failed{following}").links("/elements/failed/"))) == 10
        assert len(see(client, "/elements/failed?why=FOOTER").links("/elements/failed/")) == 1
        assert len(see(client, "/elements/failed?q=user-[x-z]").links("/elements/failed/")) == 1
        assert see(client, "/elements/deferred?why=timeout").links(
            "/elements/deferred/"
        )  # (no reasons there)


@pytest.fixture
def many_reasons(tmp_path: Path) -> Path:
    """An inbox with 3,000 failed elements, each with a reason."""
    path = tmp_path / "inbox"
    Inbox(path, durable=False).close()
    begun = time.time_ns()
    for number in range(3_000):
        name = element_name(begun + number, encode_key(f"user:{number}"))
        (path / "failed" / name).touch()
        (path / "failed" / f"{name}{REASON}").write_text("TimeoutError: no answer")
    return path


def ask(
    path: Path, *requests: Callable[[httpx.AsyncClient, str, str], Awaitable[httpx.Response]]
) -> list[str]:
    """Return the text of a site's answers to requests that are made of its client, path and secret."""

    async def use() -> list[str]:
        rules = Rules(changes=True)
        transport = httpx.ASGITransport(make_app(str(path), rules, Limits()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            home = (await client.get("/", params={"token": rules.token})).headers["location"]
            secret = dict(Document(await client.get(home)).fields())["secret"]
            return [without_spaces(Document(await request(client, home, secret))) for request in requests]

    return asyncio.run(use())


def test_reading_reasons_ends_in_time_and_what_was_not_looked_at_is_said(
    many_reasons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> listing.Matching:
        with closing(listing.Glance(str(many_reasons))) as glance:
            return listing.matching(glance, "failed", listing.Narrowed(why="timeout"))

    monkeypatch.setattr(listing, "PATIENCE", 600.0)
    begun = time.monotonic()
    whole = found()
    assert (len(whole.places), whole.unread) == (3_000, 0)
    monkeypatch.setattr(listing, "PATIENCE", (time.monotonic() - begun) / 10)

    def is_cut() -> bool:
        part = found()
        assert part.places == whole.places[: len(part.places)]  # the newest ones
        assert len(part.places) + part.unread == 3_000
        return 0 < len(part.places) < 3_000

    wait_until(is_cut, "for a part of the reasons to be read in a tenth of the time")
    with closing(listing.Glance(str(many_reasons))) as glance:  # (the bound is of reasons alone)
        assert listing.matching(glance, "failed", listing.Narrowed(key="user")).unread == 0


def test_the_page_and_the_question_say_that_not_all_reasons_were_read(
    many_reasons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def clock() -> float:  # a second for each reason
        read.append(1)
        return float(len(read))

    monkeypatch.setattr(listing, "monotonic", clock)
    page, question = ask(
        many_reasons,
        lambda client, home, _: client.get(f"{home}elements/failed?why=timeout"),
        lambda client, home, secret: client.post(
            f"{home}failed", data={"secret": secret, "matching": "retry", "why": "timeout"}
        ),
    )
    assert "5+ elements whose reason contains “timeout”" in page
    assert (
        "Reading the reasons was stopped after 5s: those of 2,995 older elements were not looked at." in page
    )
    assert "Retry all 5 found ..." in page
    assert "Retry 5 elements?" in question
    assert "2,995 older elements were not looked at, and are not among them." in question
    (answer,) = ask(
        many_reasons,
        lambda client, home, secret: client.post(
            f"{home}failed", data={"secret": secret, "matching": "discard", "why": "no such"}
        ),
    )
    assert "nothing was changed" in answer and "2,995 older elements were not looked at" in answer


def test_the_question_says_that_a_folder_has_more_than_was_looked_at(
    many_reasons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def retry_all(client: httpx.AsyncClient, home: str, secret: str) -> Awaitable[httpx.Response]:
        return client.post(f"{home}failed", data={"secret": secret, "matching": "retry"})

    (whole,) = ask(many_reasons, retry_all)
    assert "Retry 3,000 elements?" in whole and "has more than" not in whole
    monkeypatch.setattr(listing, "MOST", 1_000)
    (part,) = ask(many_reasons, retry_all)
    assert "This folder has more than 1,000 elements." in part and "are not among them" in part


def test_with_a_hundred_thousand_failed_it_counts_all_and_works_some_seconds_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "inbox"
    Inbox(path, durable=False).close()
    folder = os.open(path / "failed", os.O_RDONLY)
    begun = time.time_ns()
    for number in range(100_000):
        name = element_name(begun + number, encode_key(f"user:{number}"))
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=folder))
        if not number % 10:
            fd = os.open(f"{name}~reason.txt", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=folder)
            os.write(fd, b"TimeoutError: no answer" if number % 20 else b"KeyError: 'footer'")
            os.close(fd)
    os.close(folder)
    monkeypatch.setattr(bulk, "SECONDS", 0.5)
    monkeypatch.setattr(listing, "PATIENCE", 60.0)

    def seconds(response: httpx.Response) -> str:
        return " ".join(Document(response).text.split())

    async def use() -> None:
        rules = Rules(changes=True)
        transport = httpx.ASGITransport(make_app(str(path), rules, Limits()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            home = (await client.get("/", params={"token": rules.token})).headers["location"]
            page = Document(await client.get(f"{home}elements/failed"))
            assert "100,000 elements," in " ".join(page.text.split())  # no `+`: all are counted
            secret = next(field for field in page.fields() if field[0] == "secret")

            async def post(*fields: tuple[str, str]) -> httpx.Response:
                return await client.post(f"{home}failed", data=dict([secret, *fields]))

            question = await post(("matching", "retry"), ("why", "timeout"))
            assert "Retry 5,000 elements?" in seconds(question)
            question = await post(("matching", "discard"))
            assert "Discard 100,000 elements?" in seconds(question)
            assert "and 99,950 more" in seconds(question)
            pieces = 0
            while question.status_code == 200:
                pieces += 1
                (plan,) = [field for field in Document(question).fields() if field[0] == "plan"]
                question = await post(plan)
                if pieces == 1:
                    said = seconds(question)
                    done = re.search(r"So far: ([\d,]+) discarded. These are left.", said)
                    left = re.search(r"Discard ([\d,]+) elements\?", said)
                    assert done and left, said
                    assert int(done[1].replace(",", "")) + int(left[1].replace(",", "")) == 100_000
            assert question.status_code == 303 and pieces > 1
            assert "100,000 discarded." in seconds(await client.get(f"{home}elements/failed"))

    asyncio.run(use())
    assert list((path / "failed").iterdir()) == []


def test_old_plans_are_forgotten_when_there_are_many_elements_in_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bulk, "_KEPT", 3)
    row = row_of("failed", "failed", element_name(1, encode_key("k")))
    assert row
    plans = Plans()
    first, second = plans.keep("me", Plan("retry", [row])), plans.keep("me", Plan("retry", [row, row]))
    third = plans.keep("me", Plan("retry", [row] * 9))
    assert plans.take("me", first) is None and plans.take("me", second) is None
    assert plans.take("you", third) is None
    assert plans.take("me", third) and plans.take("me", third) is None
