"""What stands before every route: keys, the body's size, clients that hang up, one log line a request."""

import asyncio
import hashlib
import hmac
import logging
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from starlette.responses import JSONResponse

from koir.errors import FlagError
from koir.serving.meters import Meters
from koir.serving.problems import Problem

BODY_WAIT = 60  # seconds for the next part of a request's body
OPEN = {"/health", "/ready", "/v1/models", "/models", "/docs", "/openapi.json"}
GONE = 499  # how the log and the metrics call a client that hung up
log = logging.getLogger("koir.serving")


@dataclass(frozen=True)
class DoorRules:
    """keys: sha256 of each bearer key; none: everyone may come in. max_body: bytes."""

    keys: tuple[bytes, ...] = ()
    max_body: int = 32 * 2**20


def read_keys(file: str | None) -> tuple[bytes, ...]:
    """Digests of the keys in a file, one a line; lines that begin with # are left out. Raises FlagError for none."""
    if file is None:
        return ()
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else type(error).__name__
        raise FlagError(f"--api_key_file {file}", found, "a readable file, one key a line") from None
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise FlagError(f"--api_key_file {file}", "no key", "one key a line")
    return tuple(hashlib.sha256(key.encode()).digest() for key in keys)


class Door:
    """ASGI middleware. Routes leave what is worth logging in scope["koir"]."""

    def __init__(self, app, rules: DoorRules, meters: Meters, state):
        self.app, self.rules, self.meters, self.state = app, rules, meters, state

    async def __call__(self, scope, receive, send) -> None:
        """One request, answered or hung up on, and noted."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, scope["koir"] = time.perf_counter(), GONE, {}

        async def noted(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.state.draining:
                    message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        try:
            self._admit(scope)
            body = await self._body(scope, receive)
            if body is not None:
                await self._unless_gone(scope, body, receive, noted)
        except Problem as problem:
            headers = problem.headers | ({"Connection": "close"} if problem.status in (408, 413) else {})
            await JSONResponse(problem.body(), problem.status, headers)(scope, receive, noted)
        except (
            Exception
        ) as error:  # a bug of ours: where it is goes to the log, its message (it may hold texts) nowhere
            log.error("%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
            ours = Problem(500, "internal error; the server's log says where", "internal_error")
            if status == GONE:
                await JSONResponse(ours.body(), 500)(scope, receive, noted)
        finally:
            self._note(scope, status, time.perf_counter() - started)

    def _admit(self, scope) -> None:
        if not self.rules.keys or scope["path"] in OPEN or scope["method"] == "OPTIONS":
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, key = given.partition(b" ")
        digest = hashlib.sha256(key.strip()).digest()
        known = [hmac.compare_digest(digest, ours) for ours in self.rules.keys]  # all of them: equal time
        if not any(known) or kind.lower() != b"bearer":
            raise Problem(401, "Authorization: found no known key; expected Bearer KEY", "invalid_api_key")

    async def _body(self, scope, receive) -> bytes | None:
        """The whole body, or None where the client hung up before its end. Raises Problem 408, 413."""
        parts, size, limit = [], 0, self.rules.max_body
        while True:
            try:
                message = await asyncio.wait_for(receive(), BODY_WAIT)
            except TimeoutError:
                found = f"body: found nothing more for {BODY_WAIT} seconds; expected the rest"
                raise Problem(408, found, "request_timeout") from None
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size <= limit:
                parts.append(part)
            else:
                parts.clear()
            done = not message.get("more_body", False)
            if size > limit and (done or size > 4 * limit):  # read on for a while, so that the client hears the answer
                raise Problem(413, f"body: found more than {limit:,} bytes; expected at most that", "body_too_large")
            if done:
                return b"".join(parts)

    async def _unless_gone(self, scope, body: bytes, receive, send) -> None:
        """Run the application, and cancel it when the client hangs up."""
        replayed = False

        async def replay():
            nonlocal replayed
            if replayed:
                await asyncio.Event().wait()  # the watcher below hears of the disconnect
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        answer = asyncio.ensure_future(self.app(scope, replay, send))
        gone = asyncio.ensure_future(self._gone(receive))
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)
            if not answer.cancelled() and (error := answer.exception()):
                raise error
        finally:
            gone.cancel()
            answer.cancel()

    @staticmethod
    async def _gone(receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    def _note(self, scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        self.meters.requests.labels(route, str(status)).inc()
        self.meters.seconds.labels(route).observe(seconds)
        facts = scope["koir"]
        if facts.get("truncated"):
            self.meters.truncated.labels(facts["model"]).inc(facts["truncated"])
        told = "".join(f" {name}={value}" for name, value in facts.items())
        path = scope.get("raw_path", b"").decode("ascii", "replace")
        client = (scope.get("client") or ("-",))[0]
        log.info("%s %s %s %d %.1fms%s", client, scope["method"], path, status, 1000 * seconds, told)
