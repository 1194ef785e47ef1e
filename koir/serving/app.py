"""The application: routes, one shape of errors, health, metrics, and a shutdown that loses nothing."""

import asyncio
import signal
from collections.abc import Sequence

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from koir.retrieval.score_maps import SCORE_MAPS
from koir.serving.door import Door, DoorRules
from koir.serving.meters import Meters
from koir.serving.page import page
from koir.serving.problems import Problem, from_validation
from koir.serving.registry import Registry
from koir.serving.routes import router
from koir.serving.schemas import ErrorBody

ERRORS = (400, 401, 404, 408, 413, 422, 429)
GRACE = 30  # seconds after the signal in which what is in flight may end
LAST_CALLS = 0.5  # seconds in which open connections may still bring a request after the signal to stop


class Application(FastAPI):
    """FastAPI, whose OpenAPI says how a key is sent."""

    def openapi(self) -> dict:
        """The schema. A key is an alternative, since only some servers ask for one (--api_key_file)."""
        schema = super().openapi()
        schema["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        return schema | {"security": [{}, {"bearer": []}]}


def create_app(
    registry: Registry,
    rules: DoorRules | None = None,
    cors_origins: Sequence[str] = (),
    return_documents: bool = False,
    score_map: str = "sigmoid",
) -> FastAPI:
    """An application over loaded models. return_documents, score_map: where a rerank request does not say."""

    app = Application(
        title="koir",
        summary="Korean retrieval: rerank, embeddings, search",
        responses={status: {"model": ErrorBody} for status in ERRORS},
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # it would redirect to http://, which a proxy's clients cannot follow
        strict_content_type=False,
    )
    app.state.registry, app.state.draining = registry, False
    app.state.return_documents, app.state.score_map = return_documents, SCORE_MAPS[score_map]
    meters = Meters(registry)
    app.include_router(router)
    _server_routes(app, meters)
    _handlers(app)
    app.add_middleware(Door, rules=rules or DoorRules(), meters=meters, state=app.state)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(cors_origins), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return app


def _server_routes(app: FastAPI, meters: Meters) -> None:
    @app.head("/health", include_in_schema=False)
    @app.get("/health", tags=["server"])
    async def health() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", tags=["server"], responses={503: {"model": ErrorBody}})
    async def ready() -> dict[str, str]:
        """Models are loaded and the server is not shutting down."""
        if app.state.draining:
            raise Problem(503, "the server is shutting down", "shutting_down")
        return {"status": "ready"}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(page(app.openapi()))

    @app.get("/metrics", tags=["server"], response_class=Response)
    async def metrics() -> Response:
        """Prometheus' exposition format."""
        return Response(meters.page(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _handlers(app: FastAPI) -> None:
    def answer(problem: Problem) -> JSONResponse:
        return JSONResponse(problem.body(), problem.status, problem.headers)

    @app.exception_handler(Problem)
    async def known(request: Request, problem: Problem) -> JSONResponse:
        return answer(problem)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(from_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        return answer(_without_a_route(request, error))


def _without_a_route(request: Request, error: HTTPException) -> Problem:
    """404, 405 and bodies that are no text, in our shape."""
    if error.status_code == 404:
        return Problem(404, "no such route; /docs lists them", "not_found")
    if error.status_code == 400:
        return Problem(400, "body: found no readable JSON; expected one JSON object in UTF-8", "invalid_json")
    problem = Problem(error.status_code, str(error.detail), "http_error")
    problem.headers |= error.headers or {}
    return problem


class Server(uvicorn.Server):
    """uvicorn, with a shutdown in which open connections bring their last requests and all are answered."""

    async def shutdown(self, sockets=None) -> None:
        """Stop listening, answer what still arrives with `Connection: close`, then wait for what is in flight."""
        self.config.app.state.draining = True
        for server in self.servers:
            server.close()
        waited = 0.0
        while self.server_state.connections and waited < LAST_CALLS and not self.force_exit:
            await asyncio.sleep(0.05)
            waited += 0.05
        await super().shutdown(sockets)


def run(app: FastAPI, host: str, port: int) -> None:
    """Serve until a signal says stop, then end with what was accepted answered."""
    for stop in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises the signal again at its end, for these to take
        signal.signal(stop, lambda *_: None)
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE,
    )  # fmt: skip
    Server(config).run()
    app.state.registry.close()
