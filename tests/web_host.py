"""A server with the web page, and a Chromium to open it, for the tests. As a script it draws the README's picture:

python tests/web_host.py
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from glmcpu import Engine, Model

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
PICTURE = Path(__file__).parents[1] / "glmcpu" / "web" / "page.png"


def until(holds: Callable[[], bool]) -> None:
    """Waits for what another thread or process brings about."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@contextlib.contextmanager
def served(engine: Callable[[], Engine]) -> Iterator[str]:
    """The address of the page on a server; `engine` is what the page asks."""
    serving, app, service = map(import_module, ("serving", "glmcpu.server.app", "glmcpu.server.service"))
    there = service.Service("demo", engine)
    there.page_engine = engine
    server = serving.Live(there, app.Settings(web=True), 1.0)
    server.thread.start()
    try:
        until(server.ready.is_set)
        yield f"{server.url}/web/"
    finally:
        server.stop()


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    with import_module("playwright.sync_api").sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def ask(page: Any, question: str) -> None:
    """Types a question and sends it."""
    box = page.get_by_test_id("textbox").last
    box.fill(question)
    box.press("Enter")


def answered(page: Any, text: str | None = None, rounds: int = 1) -> None:
    """Waits for so many answers, the last of them this one, and then for the box to take the next question."""
    expect = import_module("playwright.sync_api").expect
    expect(page.get_by_test_id("bot")).to_have_count(rounds)
    if text is not None:
        expect(page.get_by_test_id("bot").last).to_have_text(text)
    page.locator("button.submit-button").wait_for()
    expect(page.get_by_test_id("textbox").last).to_be_enabled()


def draw() -> None:
    """The demo model's own answers, the likeliest ones."""
    with Engine(Model.load("demo")) as engine, served(lambda: engine) as url, browser() as chromium:
        page = chromium.new_page(viewport={"width": 1200, "height": 1000})
        page.goto(url)
        page.locator(".about p").wait_for()
        page.get_by_text("Settings").click()
        page.get_by_label("range slider for Temperature").press("Home")
        for n, question in enumerate(("Hello! Who are you?",), 1):
            ask(page, question)
            answered(page, rounds=n)
        page.get_by_role("button", name="New chat").click()
        answered(page, rounds=0)
        for n, question in enumerate(("晚上睡不着应该怎么办", "What can you do?", "45加38等于多少"), 1):
            ask(page, question)
            answered(page, rounds=n)
        page.get_by_test_id("dataset-cell-1-0").wait_for()
        page.get_by_placeholder("Type a message").wait_for()
        page.get_by_test_id("textbox").last.blur()
        page.mouse.move(0, 0)
        page.screenshot(path=PICTURE)


if __name__ == "__main__":
    draw()
