"""The web page: a conversation in the browser, mounted in the server's own application."""

import asyncio
from collections.abc import Callable
from urllib.parse import quote

import fastapi
import gradio as gr

from glmcpu.engine import Engine
from glmcpu.web.guard import Guard
from glmcpu.web.page import CSS, ICON, SAY, THEME, build


def mount(app: fastapi.FastAPI, engine: Callable[[], Engine], *, path: str = "/web") -> fastapi.FastAPI:
    """Puts the page under `path` of `app`; it answers with the engine that `engine()` returns.

    Call it before the server runs. While the model loads `engine` raises BusyError, and the page says so. Neither the
    server nor the page asks other machines for anything, and nothing of Gradio but the page can be reached.
    """

    async def mounted() -> None:
        gr.mount_gradio_app(
            app,
            build(engine),
            path,
            server_name="127.0.0.1",
            footer_links=[],
            run_history=False,
            show_error=False,
            ssr_mode=False,
            pwa=False,
            enable_monitoring=False,
            mcp_server=False,
            i18n=SAY,
            theme=THEME,
            css=CSS,
            head=f'<link rel="icon" href="data:image/svg+xml,{quote(ICON)}">',
        )

    # Where no event loop runs, Gradio makes one for each lock it needs, and closes none of them.
    asyncio.run(mounted())
    app.add_middleware(Guard, path=path)
    return app
