"""The page's HTTP server. It writes nothing but the list of rejections, and without a token serves only localhost."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field, model_validator

from browser import lists
from browser.answers import Answers
from browser.filters import ImageSelection
from browser.guard import guard
from browser.pictures import as_jpeg
from browser.together import MAX_STORES, as_webp, draw_together
from pipeline.errors import ConfigError, MustError

PAGE = Path(__file__).parent / "page"
MAX_SIDE = 2048
"""Pixels of a picture's longer side."""

Share = Annotated[float, Query(ge=0, le=1)]


class ImageQuery(BaseModel):
    """The images of a link: conditions (things.confidence<0.3), and thresholds by label store (things:0.5)."""

    f: list[str] = []
    t: list[str] = []

    @property
    def selection(self) -> ImageSelection:
        return ImageSelection(self.f, thresholds=parse_thresholds(self.t))


class ListQuery(ImageQuery):
    """A page of the images in an order, and the columns to show of each."""

    order: str = "id"
    limit: int = Field(60, ge=1, le=1000)
    offset: int = Field(0, ge=0, le=2**31)
    show: list[str] = []

    @property
    def selection(self) -> ImageSelection:
        return ImageSelection(self.f, self.order, parse_thresholds(self.t))


class HistogramQuery(ImageQuery):
    """A column of the images to count."""

    column: str


class BalanceQuery(ImageQuery):
    """A store, and the threshold whose effect is counted."""

    store: str
    threshold: Share = 0.0


class SqlQuery(BaseModel):
    """A SELECT."""

    sql: str = Field(max_length=100_000)


class RejectionRequest(BaseModel):
    """Images to reject or to take back, by their keys or by conditions; with a store, their labels in it."""

    model_config = ConfigDict(extra="forbid")

    keys: list[str] | None = None
    f: list[str] | None = None
    t: list[str] = []
    store: str | None = None
    reason: str = Field(default="", max_length=200)

    @property
    def selection(self) -> ImageSelection:
        return ImageSelection(self.f or [], thresholds=parse_thresholds(self.t))

    @model_validator(mode="after")
    def _check(self) -> RejectionRequest:
        if (self.keys is None) == (self.f is None):
            raise ValueError("give either `keys` or `f`, not both")
        return self


def create_app(answers: Answers, token: str | None = None) -> FastAPI:
    """Return the server. With a `token` it answers whoever has it, without one this machine alone."""
    app = FastAPI(title="must browse", docs_url=None, redoc_url=None)
    app.middleware("http")(guard(token))
    app.exception_handler(MustError)(_error_response)
    app.exception_handler(RequestValidationError)(_invalid_response)
    _add_answers(app, answers)
    _add_pictures(app, answers)
    app.mount("/page", StaticFiles(directory=PAGE))
    app.get("/", include_in_schema=False)(lambda: FileResponse(PAGE / "index.html"))
    return app


class _AsciiResponse(JSONResponse):
    """JSON in ASCII: it can hold any text, also what is none in UTF-8."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode("ascii")


async def _error_response(request: Request, error: Exception) -> Response:
    return _AsciiResponse({"error": str(error)}, 404 if getattr(error, "exit_code", 0) == 3 else 400)


async def _invalid_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    told = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return _AsciiResponse({"error": "; ".join(told)}, 422)


def _add_answers(app: FastAPI, answers: Answers) -> None:
    @app.get("/api/about")
    def about() -> dict[str, Any]:
        return answers.about()

    @app.get("/api/overview")
    def overview() -> dict[str, Any]:
        return answers.overview.to_json()

    @app.get("/api/images")
    def images(query: Annotated[ListQuery, Query()]) -> dict[str, Any]:
        return answers.images(query.selection, query.limit, query.offset, query.show)

    @app.get("/api/image/{key}")
    def image(key: str, query: Annotated[ImageQuery, Query()]) -> dict[str, Any]:
        return answers.image(key, query.selection.thresholds)

    @app.get("/api/histogram")
    def histogram(query: Annotated[HistogramQuery, Query()]) -> dict[str, Any]:
        return answers.histogram(query.selection, query.column)

    @app.get("/api/balance")
    def balance(query: Annotated[BalanceQuery, Query()]) -> dict[str, Any]:
        return answers.balance(query.selection, answers.store(query.store), query.threshold)

    @app.get("/api/at/{key}")
    def at(key: str, store: str, x: Share, y: Share, threshold: Share = 0.0) -> dict[str, str]:
        return {"says": answers.describe_at(key, answers.store(store), (x, y), threshold)}

    @app.get("/api/left-out/{dataset}/{kind}")
    def left_out(dataset: str, kind: str, has: str = "") -> dict[str, Any]:
        return lists.left_out(answers, kind, dataset, has)

    @app.get("/api/shards")
    def shards(store: str) -> dict[str, Any]:
        return lists.shards(answers, answers.store(store))

    def chosen(request: RejectionRequest) -> tuple[list[str], str | None]:
        keys = request.keys if request.keys is not None else answers.keys(request.selection)
        return keys, answers.store(request.store).name if request.store else None

    @app.post("/api/reject")
    def reject(request: RejectionRequest) -> dict[str, Any]:
        number, count = answers.rejecting.reject(*chosen(request), request.reason)
        return {"count": count, "undo": number}

    @app.post("/api/take-back")
    def take_back(request: RejectionRequest) -> dict[str, int]:
        return {"count": answers.rejecting.take_back(*chosen(request))}

    @app.post("/api/undo/{number}")
    def undo(number: int) -> dict[str, int]:
        return {"count": answers.rejecting.undo(number)}

    @app.post("/api/sql")
    def sql(query: SqlQuery) -> dict[str, Any]:
        return answers.sql(query.sql)


def _add_pictures(app: FastAPI, answers: Answers) -> None:
    @app.get("/api/picture/{key}", response_class=Response)
    def picture(
        key: str,
        store: str | None = None,
        threshold: Share = 0.0,
        side: Annotated[int, Query(ge=16, le=MAX_SIDE)] = 256,
    ) -> Response:
        chosen = answers.store(store) if store else None
        drawn, stays = answers.pictures.draw(answers.image_id(key), chosen, threshold, side)
        return Response(as_jpeg(drawn), media_type="image/jpeg", headers=_caching(stays))

    @app.get("/api/together/{key}", response_class=Response)
    def together(
        key: str,
        store: Annotated[list[str], Query(max_length=MAX_STORES)] = [],  # noqa: B006 - FastAPI copies it
        t: Annotated[list[str], Query()] = [],  # noqa: B006
        side: Annotated[int, Query(ge=16, le=MAX_SIDE)] = 256,
    ) -> Response:
        thresholds = answers.thresholds(parse_thresholds(t))
        stores = [(found, thresholds[found.name]) for found in map(answers.store, store)]
        drawn, stays = draw_together(answers.pictures, answers.image_id(key), stores, side)
        return Response(as_webp(drawn), media_type="image/webp", headers=_caching(stays))


def _caching(stays: bool) -> dict[str, str]:
    return {"Cache-Control": "private, max-age=3600" if stays else "no-store"}


def parse_thresholds(texts: list[str]) -> dict[str, float]:
    """Return thresholds by label store from texts like `things:0.5`. Raises ConfigError for any other text."""
    thresholds = {}
    for text in texts:
        found = re.fullmatch(r"(.+):(\d*\.?\d+)", text)
        if not found:
            raise ConfigError(f"Threshold {text!r} is no label store with a number, such as `things:0.5`.")
        thresholds[found[1]] = float(found[2])
    return thresholds
