"""The web page in a real Chromium, headless: what a person does on it, and what it must never do."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from scripted import Script, scripted
from web_host import CHROMIUM, answered, ask, browser, served, until

from glmcpu import BusyError, Engine, Sampler, Stream

pytest.importorskip("gradio", reason="the page needs pip install 'glmcpu[web]'")
expect = pytest.importorskip("playwright.sync_api", reason="pip install playwright drives the browser").expect
if not CHROMIUM:
    pytest.skip("there is no Chromium here to open the page in", allow_module_level=True)

ATTACKS = """<img src=x onerror="window.hacked=1"> <svg onload="window.hacked=2"></svg>
<script>window.hacked=3</script> </script><script>window.hacked=4</script>

[click](javascript:window.hacked=5) <a href="javascript:window.hacked=6">click</a>
<iframe srcdoc="<script>parent.hacked=7</script>"></iframe> <form action="https://example.com"><button>send</button></form>
![x](https://example.com/x.png) <style>body{background:url(https://example.com/y.png)}</style>
$\\href{javascript:window.hacked=8}{x}$ <details open ontoggle="window.hacked=9">x</details>"""


class Host:
    """A server with the page. `loading`: why there is no engine yet, or "" """

    def __init__(self, engine: Engine, script: Script) -> None:
        self.engine, self.script, self.url, self.loading = engine, script, "", ""
        self.samplers: list[Sampler] = []
        self.streams: list[Stream] = []

    def running_engine(self) -> Engine:
        if self.loading:
            raise BusyError(self.loading)
        return self.engine

    def idle(self) -> bool:
        return self.engine.state().running == 0


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    model, script = scripted()
    with Engine(model) as engine, pytest.MonkeyPatch.context() as patch:
        patch.setattr("glmcpu.web.answer.SHOWN_EVERY_S", 0.0)
        host = Host(engine, script)
        submit = engine.submit

        def watched(ids: list[int], **options: Any) -> Stream:
            host.samplers.append(options["sampler"])
            host.streams.append(submit(ids, **options))
            return host.streams[-1]

        patch.setattr(engine, "submit", watched)
        with served(host.running_engine) as host.url:
            yield host
        script.let_go()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def context(chromium: Any) -> Iterator[Any]:
    """What pages share: the scripts that were loaded once."""
    with contextlib.closing(chromium.new_context(locale="en-US")) as context:
        yield context


@pytest.fixture
def page(host: Host, context: Any) -> Iterator[Any]:
    """The page as who has never seen it gets it."""
    page = opened(host, context)
    yield page
    host.script.let_go()
    until(host.idle)
    for left in context.pages:
        left.evaluate("localStorage.clear()")
        left.close()


def opened(host: Host, context: Any) -> Any:
    host.script.let_go()
    host.script.prompts.clear()
    host.script.answer = "I am a small model."
    page = context.new_page()
    page.goto(host.url)
    page.locator(".about p").wait_for()
    return page


def stop(page: Any) -> None:
    page.locator("button.stop-button").click()
    answered(page)


def test_an_answer_streams_can_be_had_again_and_is_found_after_a_reload(host: Host, page: Any) -> None:
    script = host.script
    script.answer = "one two three four"
    script.hold()
    script.let("one two three")
    ask(page, " ")  # is not sent
    ask(page, "count")
    expect(page.get_by_test_id("bot")).to_have_text("one two three")
    script.let_go()
    answered(page, "one two three four")
    expect(page.locator(".figures").first).to_contain_text("tokens/s")

    saved = page.get_by_test_id("dataset-cell-0-0")
    expect(saved).to_have_text("count")
    page.reload()
    saved.click()
    expect(page.get_by_test_id("bot")).to_have_text("one two three four")
    ask(page, "and on")
    answered(page, "one two three four", rounds=2)
    assert script.prompts[1:] == ["[Round 0]\n问:count\n答:one two three four\n[Round 1]\n问:and on\n答:"]

    script.answer = "uno dos tres"
    page.get_by_role("button", name="Retry").click()
    answered(page, "uno dos tres", rounds=2)
    assert script.prompts[1:] == script.prompts[1:2] * 2

    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_test_id("bot")).to_have_count(1)
    expect(page.get_by_test_id("textbox").last).to_have_value("and on")
    expect(page.locator(".figures").first).to_have_text("")

    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_test_id("bot")).to_have_count(0)
    expect(saved).to_have_count(0)


def test_stop_ends_an_answer_and_keeps_its_beginning(host: Host, page: Any) -> None:
    script = host.script
    script.answer = "word " * 500
    script.hold()
    script.let("word word word")
    ask(page, "talk")
    expect(page.get_by_test_id("bot")).to_have_text("word word word")
    stop(page)
    script.let_go()
    until(host.idle)
    script.answer = "yes"
    ask(page, "still there?")
    answered(page, "yes", rounds=2)
    assert script.prompts[-1] == "[Round 0]\n问:talk\n答:word word word\n[Round 1]\n问:still there?\n答:"


def test_a_question_can_be_edited_and_its_answer_stopped(host: Host, page: Any) -> None:
    script = host.script
    ask(page, "first")
    answered(page, script.answer)
    script.answer = "word " * 500
    script.hold()
    script.let("word word")
    page.get_by_role("button", name="Edit").click()
    page.locator("textarea:visible").first.fill("second")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_test_id("bot")).to_have_text("word word")
    stop(page)
    script.let_go()
    until(host.idle)
    script.answer = "yes"
    ask(page, "third")
    answered(page, "yes", rounds=2)
    assert script.prompts[1:] == ["second", "[Round 0]\n问:second\n答:word word\n[Round 1]\n问:third\n答:"]


def test_the_sliders_reach_the_engine(host: Host, page: Any) -> None:
    page.get_by_text("Settings").click()
    slider = page.get_by_label("range slider for Temperature")
    expect(slider).to_have_value("0.95")
    slider.press("Home")
    ask(page, "hello")
    answered(page, host.script.answer)
    assert host.samplers[-1].temperature == 0


def test_who_leaves_stops_the_answer(host: Host, page: Any) -> None:
    script = host.script
    script.answer = "word " * 1900
    script.hold()
    script.let("word word")
    ask(page, "talk")
    expect(page.get_by_test_id("bot")).to_have_text("word word")
    page.close()

    def ended() -> bool:
        script.let("word")
        return host.idle()

    until(ended)
    assert host.streams[-1].cancelled


def test_the_page_asks_no_other_machine_and_may_not(host: Host, chromium: Any) -> None:
    asked: list[str] = []
    broken: list[str] = []
    with contextlib.closing(chromium.new_context()) as context:
        context.on("request", lambda request: asked.append(request.url))
        context.on("weberror", lambda error: broken.append(str(error.error)))
        page = context.new_page()
        page.add_init_script(
            "window.refused = []; addEventListener('securitypolicyviolation', e => refused.push(e.blockedURI))"
        )
        page.goto(host.url)
        page.locator(".about p").wait_for()
        host.script.answer = "**bold** $$x^2$$\n\n```python\nprint(1)\n```"
        ask(page, "hello")
        page.locator("pre code").wait_for()
        page.locator(".katex").first.wait_for()
        answered(page)
        site = host.url.removesuffix("web/")
        assert page.evaluate("refused") == []
        assert sum(url.startswith(site) for url in asked) > 10
        assert [url for url in asked if not url.startswith((site, "data:"))] == []
        page.evaluate("fetch('https://example.com/').catch(() => 0)")
        page.evaluate("document.body.append(Object.assign(new Image(), {src: 'https://example.com/x.png'}))")
        until(lambda: len(page.evaluate("refused")) == 2)  # the policy forbids wait_for_function, which is eval
    assert not broken


def test_an_answer_is_markdown_with_code_and_formulas(host: Host, page: Any) -> None:
    host.script.answer = (
        "**你好**\n\n```python\ndef add(a, b):\n    return a + b\n```\n\n$$x^2$$ \\(y\\)\n\n- one\n- two"
    )
    ask(page, "hello")
    answer = page.get_by_test_id("bot")
    expect(answer.locator("strong")).to_have_text("你好")
    expect(answer.locator("pre code")).to_contain_text("    return a + b")
    expect(answer.locator("button[title*=opy]")).to_have_count(1)
    expect(answer.locator(".katex")).to_have_count(2)
    expect(answer.locator("li")).to_have_text(["one", "two"])
    answered(page)


def test_an_answer_cannot_act_in_the_page(host: Host, page: Any) -> None:
    host.script.answer = f"{ATTACKS}\n\nthe end"
    ask(page, ATTACKS)
    page.get_by_test_id("bot").get_by_text("the end").wait_for()
    answered(page)
    messages = page.locator("[data-testid=bot], [data-testid=user]")
    assert messages.count() == 2
    bad = "script, iframe, style, [onerror], [onload], [ontoggle], [srcdoc], [href^='javascript:' i]"
    expect(messages.locator(bad)).to_have_count(0)
    for link in messages.get_by_text("click").all():
        link.click(no_wait_after=True)
    page.evaluate(
        "window.refused = []; addEventListener('securitypolicyviolation', e => refused.push(e.violatedDirective))"
    )
    messages.get_by_role("button", name="send").last.click(no_wait_after=True)
    until(lambda: "form-action" in page.evaluate("refused"))  # forms stay, and go nowhere
    assert page.evaluate("window.hacked") is None
    assert page.url == host.url


def test_the_page_speaks_chinese_to_a_chinese_browser(host: Host, chromium: Any) -> None:
    with contextlib.closing(chromium.new_context(locale="zh-CN")) as context:
        page = opened(host, context)
        page.get_by_text("设置").wait_for()
        page.get_by_role("button", name="新对话").wait_for()
        host.script.answer = "你好,再见"
        ask(page, "你好")
        answered(page, "你好，再见")
        expect(page.locator(".figures").first).to_contain_text("个 token")


def test_while_the_model_loads_the_page_says_so_and_then_goes_on(host: Host, page: Any) -> None:
    host.loading = "the model is being loaded; ask again in a moment"
    page.reload()
    about = page.locator(".about").first
    expect(about).to_have_text(f"Not now: {host.loading}.")
    ask(page, "hello")
    answered(page, f"Not now: {host.loading}.")
    host.loading = ""
    expect(about).to_contain_text("demo · 2,048 tokens")
    page.get_by_role("button", name="Retry").click()
    answered(page, "I am a small model.")


def test_the_address_without_a_slash_and_the_servers_own_lead_to_the_page(host: Host, context: Any) -> None:
    for address in (host.url.removesuffix("/"), host.url.removesuffix("web/")):
        with contextlib.closing(context.new_page()) as page:
            page.goto(address)
            assert page.url == host.url
