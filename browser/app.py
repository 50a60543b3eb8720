"""The page's server: answers over HTTP, on this machine alone unless told otherwise. It writes nothing but the list of
what was rejected, and reads nothing but the root.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field, model_validator

from browser import lists
from browser.answers import Answers
from browser.filters import ImageSelection
from browser.pictures import as_jpeg
from browser.question import ask_freely
from pipeline.errors import MustError

PAGE = Path(__file__).parent / "page"
TOKEN = "must_token"
"""The cookie, and the part of a link, that shows who may look, where others can reach the server."""
HERE = ("localhost", "127.0.0.1", "[::1]")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
MOST_SIDE = 2048
"""Pixels of a picture's longer side."""

Share = Annotated[float, Query(ge=0, le=1)]
Next = Callable[[Request], Awaitable[Response]]


class ImageQuery(BaseModel):
    """Which images a link is about: conditions, as things.confidence<0.3, and thresholds by label store, things:0.5."""

    f: list[str] = []
    t: list[str] = []

    @property
    def view(self) -> ImageSelection:
        """The images."""
        return ImageSelection(self.f, thresholds=thresholds_in(self.t))


class Listed(ImageQuery):
    """A page of them, in an order, and the columns to tell of each."""

    order: str = "id"
    limit: int = Field(60, ge=1, le=1000)
    offset: int = Field(0, ge=0, le=2**31)
    show: list[str] = []

    @property
    def view(self) -> ImageSelection:
        return ImageSelection(self.f, self.order, thresholds_in(self.t))


class Counted(ImageQuery):
    """A column of them, for a histogram."""

    column: str


class Weighed(ImageQuery):
    """A threshold of a store, for what it keeps."""

    store: str
    threshold: Share = 0.0


class Question(BaseModel):
    """A query in SQL."""

    sql: str = Field(max_length=100_000)


class Rejection(BaseModel):
    """What is thrown out, or taken back: images by their keys, or all that conditions leave; or their labels in a
    store.
    """

    model_config = ConfigDict(extra="forbid")

    keys: list[str] | None = None
    f: list[str] | None = None
    t: list[str] = []
    store: str | None = None
    reason: str = Field(default="", max_length=200)

    @property
    def view(self) -> ImageSelection:
        """What the conditions leave."""
        return ImageSelection(self.f or [], thresholds=thresholds_in(self.t))

    @model_validator(mode="after")
    def _says_what(self) -> Rejection:
        if (self.keys is None) == (self.f is None):
            raise ValueError("either `keys` or `f` says what is meant")
        return self


def create_app(answers: Answers, token: str | None = None) -> FastAPI:
    """The server. With a `token` it answers those who have it, wherever they are; without, this machine alone."""
    app = FastAPI(title="must browse", docs_url=None, redoc_url=None)
    app.middleware("http")(_guard(token))
    app.exception_handler(MustError)(_told)
    _add_answers(app, answers)
    _add_pictures(app, answers)
    app.mount("/page", StaticFiles(directory=PAGE))
    app.get("/", include_in_schema=False)(lambda: FileResponse(PAGE / "index.html"))
    return app


def _guard(token: str | None) -> Callable[[Request, Next], Awaitable[Response]]:
    """Who may ask: nobody by way of another site's page, and where there is a token only who has it."""

    async def guard(request: Request, answer: Next) -> Response:
        refused = _refusal(request, token)
        if refused:
            return JSONResponse({"error": refused}, 403)
        response = await answer(request)
        response.headers.update(HEADERS)
        if token and request.query_params.get("token"):
            response.set_cookie(TOKEN, token, httponly=True, samesite="strict")
        return response

    return guard


def _refusal(request: Request, token: str | None) -> str | None:
    """Why a request is not answered, None if it is."""
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return "A page of another site asked."
    if token is None:
        host = request.headers.get("host", "")
        return None if host.rpartition(":")[0] in HERE or host in HERE else f"This server is not {host!r}."
    given = request.cookies.get(TOKEN) or request.query_params.get("token") or ""
    return (
        None if secrets.compare_digest(given.encode(), token.encode()) else "Use the link that `must browse` printed."
    )


async def _told(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 404 if getattr(error, "exit_code", 0) == 3 else 400)


def _add_answers(app: FastAPI, answers: Answers) -> None:
    @app.get("/api/about")
    def about() -> dict[str, Any]:
        return answers.about()

    @app.get("/api/images")
    def images(asked: Annotated[Listed, Query()]) -> dict[str, Any]:
        return answers.images(asked.view, asked.limit, asked.offset, asked.show)

    @app.get("/api/image/{key}")
    def image(key: str, asked: Annotated[ImageQuery, Query()]) -> dict[str, Any]:
        return answers.image(key, asked.view.thresholds)

    @app.get("/api/histogram")
    def histogram(asked: Annotated[Counted, Query()]) -> dict[str, Any]:
        return answers.histogram(asked.view, asked.column)

    @app.get("/api/balance")
    def balance(asked: Annotated[Weighed, Query()]) -> dict[str, Any]:
        return answers.balance(asked.view, answers.store(asked.store), asked.threshold)

    @app.get("/api/at/{key}")
    def at(key: str, store: str, x: Share, y: Share, threshold: Share = 0.0) -> dict[str, str]:
        return {"says": answers.at(key, answers.store(store), (x, y), threshold)}

    @app.get("/api/left-out/{dataset}/{kind}")
    def left_out(dataset: str, kind: str, has: str = "") -> dict[str, Any]:
        return lists.left_out(answers, kind, dataset, has)

    @app.get("/api/shards")
    def shards(store: str) -> dict[str, Any]:
        return lists.shards(answers, answers.store(store))

    @app.post("/api/reject")
    def reject(given: Rejection) -> dict[str, Any]:
        keys = given.keys if given.keys is not None else answers.keys(given.view)
        done = answers.rejecting.reject(keys, answers.store(given.store).name if given.store else None, given.reason)
        return {"count": done.count, "undo": done.number}

    @app.post("/api/take-back")
    def take_back(given: Rejection) -> dict[str, int]:
        keys = given.keys if given.keys is not None else answers.keys(given.view)
        store = answers.store(given.store).name if given.store else None
        return {"count": answers.rejecting.take_back(keys, store)}

    @app.post("/api/undo/{number}")
    def undo(number: int) -> dict[str, int]:
        return {"count": answers.rejecting.undo(number)}

    @app.post("/api/sql")
    def sql(question: Question) -> dict[str, Any]:
        return ask_freely(answers.tables, answers.stores, question.sql)


def _add_pictures(app: FastAPI, answers: Answers) -> None:
    @app.get("/api/picture/{key}", response_class=Response)
    def picture(
        key: str,
        store: str | None = None,
        threshold: Share = 0.0,
        side: Annotated[int, Query(ge=16, le=MOST_SIDE)] = 256,
    ) -> Response:
        chosen = answers.store(store) if store else None
        drawn = answers.pictures.drawn(answers.number(key), chosen, threshold, side)
        return Response(as_jpeg(drawn), media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


def thresholds_in(texts: list[str]) -> dict[str, float]:
    """Thresholds by label store, of texts like `things:0.5`; what is no such text is passed over."""
    found = {}
    for text in texts:
        name, _, number = text.rpartition(":")
        try:
            found[name] = float(number)
        except ValueError:
            continue
    return found
