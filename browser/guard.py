"""Let this machine ask the page's server, or with a secret token whoever shows it, and no page of another site."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from pipeline.errors import ConfigError, first_line

COOKIE = "must_token"
"""The cookie that tells a visitor who has shown the token; it holds the token's hash."""
MIN_TOKEN_CHARS = 16
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
OTHER_SITE = "Requests from pages of other sites are refused."

Next = Callable[[Request], Awaitable[Response]]


def new_token() -> str:
    """Return a random token of 32 characters that need no encoding in a URL."""
    return secrets.token_urlsafe(24)


def check_token(token: str, option: str) -> str:
    """Return a token that is hard to guess. Raises ConfigError, offering a new one, for others."""
    if len(token) >= MIN_TOKEN_CHARS and token.isascii() and token.isprintable():
        return token
    raise ConfigError(
        f"{option}: a token takes at least {MIN_TOKEN_CHARS} printable characters of ASCII; this one has {len(token)} "
        f"characters. Take this: {new_token()}"
    )


def read_token(file: Path) -> str:
    """Return the token in a file, without space around it. Raises ConfigError if it can't be read or is no token."""
    try:
        return check_token(file.read_text("utf-8").strip(), f"--token-file {file}")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {file} can't be read: {first_line(error)}") from error


def guard(token: str | None) -> Callable[[Request, Next], Awaitable[Response]]:
    """Return the middleware that refuses requests from pages of other sites, and requests without the token.

    Raises ConfigError for a token that is easy to guess.
    """
    digest = None if token is None else _digest(check_token(token, "token"))

    async def middleware(request: Request, call_next: Next) -> Response:
        refused = _refusal(request, digest)
        if refused:
            return JSONResponse({"error": refused}, 403)
        response = await call_next(request)
        response.headers.update(HEADERS)
        if digest and request.query_params.get("token"):
            response.set_cookie(COOKIE, digest, httponly=True, samesite="strict")
        return response

    return middleware


def _refusal(request: Request, digest: str | None) -> str | None:
    """Return why a request is refused, None if it is answered; `digest` is that of the token."""
    host = request.headers.get("host", "")
    if _is_of_other_site(request) and not _follows_link(request):
        return OTHER_SITE
    if digest is None:
        refusal = f"This server answers to localhost, not to {host!r}: start it with --host."
        return None if host.rpartition(":")[0] in LOCAL_HOSTS or host in LOCAL_HOSTS else refusal
    shown = request.query_params.get("token")
    given = request.cookies.get(COOKIE, "") if shown is None else _digest(shown)
    is_right = secrets.compare_digest(given.encode(), digest.encode())
    return None if is_right else "Use the link that `must browse` printed."


def _is_of_other_site(request: Request) -> bool:
    """Return True if another site's page makes the request; browsers that don't say so still name the origin."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return site not in ("none", "same-origin")
    hosts = [request.headers.get(name) for name in ("host", "x-forwarded-host")]  # proxies may rewrite the first
    return origin is not None and urlsplit(origin).netloc not in hosts


def _follows_link(request: Request) -> bool:
    """Return True if a visitor opens the page itself by a link, on whatever site it stands."""
    headers = request.headers
    return (
        request.method == "GET"
        and request.url.path == "/"
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
    )


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
