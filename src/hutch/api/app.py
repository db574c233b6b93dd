"""The ASGI application: every route, and every failure as an error of the one table.

It asks only `Operations`, and so serves one host or a cluster alike.
"""

from collections.abc import Callable

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from hutch import __version__
from hutch.api import (
    checkpoints,
    execs,
    files,
    images,
    kernels,
    networks,
    pools,
    ports,
    run,
    sandboxes,
    snapshots,
    streams,
    system,
    templates,
)
from hutch.api.bodies import ErrorBody, invalid
from hutch.api.operations import Operations
from hutch.api.responses import answer, error_body
from hutch.errors import HutchError, error


def create_app(operations: Operations, on_stop: Callable[[], None] = lambda: None) -> FastAPI:
    """Return the application that serves `operations`.

    `on_stop` is called after a request to end the daemon was granted: it ends the server.
    """
    app = FastAPI(
        title="Hutch",
        version=__version__,
        description="Disposable computers: OCI images as microVMs. Streams: spec/api.md.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/v1/openapi.json",
        generate_unique_id_function=lambda route: route.name,
        responses={"default": {"model": ErrorBody, "description": "an error"}},
    )
    # First, and as plain routes: an included router tries all of its routes, twice, and how long an
    # exec takes is mostly what happens around it.
    for streaming in (streams, run):
        app.router.routes += streaming.routes(operations).routes
    for module in (
        sandboxes,
        ports,
        networks,
        execs,
        files,
        images,
        kernels,
        templates,
        pools,
        snapshots,
        checkpoints,
    ):
        app.include_router(module.routes(operations))
    app.include_router(system.routes(operations, on_stop))
    app.add_exception_handler(HutchError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_bug)
    return app


async def _answer_error(request: Request, failure: Exception) -> Response:
    assert isinstance(failure, HutchError)
    return answer(error_body(failure), failure.status)


async def _answer_invalid(request: Request, failure: Exception) -> Response:
    assert isinstance(failure, RequestValidationError)
    problem = invalid(failure.errors())
    return answer(error_body(problem), problem.status)


async def _answer_http(request: Request, failure: Exception) -> Response:
    assert isinstance(failure, HTTPException)
    what = f"{request.method} {request.url.path}: {failure.detail}"
    return answer(error_body(error("bad_request", what)), failure.status_code)


async def _answer_bug(request: Request, failure: Exception) -> Response:
    return answer(error_body(failure), 500)
