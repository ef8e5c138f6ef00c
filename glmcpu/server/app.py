"""All of the server as one ASGI application: who is let in, what is counted, which routes there are.

    Telemetry -> CORS -> Guard -> Room -> FastAPI: /v1/.. , POST / , /tokenize , /health , /metrics , /docs (and /web)

Nothing is fetched from elsewhere: the pages under /docs bring their scripts along.
"""

from dataclasses import dataclass, field
from typing import Any, cast

from fastapi import APIRouter, FastAPI
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from glmcpu import __version__
from glmcpu.server import official_api, openai_api, problems
from glmcpu.server.fields import DetokenizeRequest, TokenizeRequest
from glmcpu.server.guard import App, Guard, Rules
from glmcpu.server.problems import as_problems
from glmcpu.server.room import Room
from glmcpu.server.routes import StrictRoute, aside
from glmcpu.server.schemas import REFUSED, TEXT, DetokenizeReply, Health, TokenizeReply, answered
from glmcpu.server.service import Service
from glmcpu.server.telemetry import Metrics, Telemetry

WEB = "/web"


@dataclass(frozen=True)
class Settings:
    """How a server is to behave; rules: who may come in; log_texts: prompts and answers in the log; web: the page."""

    rules: Rules = field(default_factory=Rules)
    log_texts: bool = False
    web: bool = False


def build(service: Service, settings: Settings) -> App:
    """The application."""
    metrics = Metrics(lambda: _busy(service))
    inner = _routes(service, metrics, settings.web)
    app: App = Guard(Room(cast(App, inner), service), settings.rules)
    if settings.rules.origins:
        app = cast(
            App,
            CORSMiddleware(
                cast(Any, app),
                allow_origins=[*settings.rules.origins],
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["x-request-id", "x-dropped-rounds", "retry-after"],
            ),
        )
    return Telemetry(app, metrics, texts=settings.log_texts)


def _routes(service: Service, metrics: Metrics, web: bool) -> FastAPI:
    app = FastAPIOffline(
        redoc_url=None,
        redirect_slashes=False,
        title="glmcpu",
        version=__version__,
        description="ChatGLM-6B on a CPU: OpenAI's protocol and the official one.",
        responses=REFUSED,
        separate_input_output_schemas=False,
    )
    app.include_router(openai_api.router(service))
    app.include_router(official_api.router(service))
    app.include_router(_own(service, metrics, web))

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        return problems.of_http(error, request).response()

    app.add_exception_handler(404, cast(Any, refuse))
    app.add_exception_handler(405, cast(Any, refuse))
    if web:
        from glmcpu import web as page

        app.get(WEB, include_in_schema=False)(_to_page)
        page.mount(app, service.page_engine, path=WEB)
    return app


def _own(service: Service, metrics: Metrics, web: bool) -> APIRouter:
    """The routes that neither protocol has."""
    routes = APIRouter(route_class=StrictRoute, tags=["glmcpu"])

    @routes.get("/", include_in_schema=False)
    async def root() -> Response:
        """For a browser that comes to see what is here."""
        return await _to_page() if web else RedirectResponse("/docs")

    @routes.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        """What browsers ask for by themselves; the pages bring their own."""
        return Response(status_code=204)

    @routes.get("/health", responses={**answered(Health), 503: {"model": Health}})
    async def health() -> Response:
        """Whether requests are served: 200, or 503 while the model loads or when the engine does not move."""
        status, body = service.health()
        return JSONResponse(body, status, {"Retry-After": "1"} if status == 503 else None)

    @routes.get("/metrics", response_class=Response, responses=TEXT)
    async def counters() -> Response:
        """Counters in Prometheus' format."""
        return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)

    @routes.post("/tokenize", responses=answered(TokenizeReply))
    async def tokenize(body: TokenizeRequest) -> Response:
        """The token ids of a text."""
        tokenizer = service.tokenizer
        ids = await aside(len(body.content), lambda: tokenizer.encode(body.content, body.add_special))
        return JSONResponse({"tokens": ids})

    @routes.post("/detokenize", responses=answered(DetokenizeReply))
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of token ids."""
        with as_problems("tokens"):
            tokenizer = service.tokenizer
            return JSONResponse({"content": await aside(len(body.tokens), lambda: tokenizer.decode(body.tokens))})

    return routes


async def _to_page() -> Response:
    """A mounted page is found with the slash only."""
    return RedirectResponse(f"{WEB}/")


def _busy(service: Service) -> tuple[int, int]:
    about = service.health()[1]
    return about["running"], about["waiting"]
