"""The page itself: Gradio's ChatInterface with the official sliders, in the language of the browser."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import gradio as gr
from gradio.events import Dependency

from glmcpu.engine import Engine
from glmcpu.errors import BusyError, GlmcpuError
from glmcpu.web import words
from glmcpu.web.answer import Message, Shown, answers, no_answer

EXAMPLES = ("你好", "晚上睡不着应该怎么办", "Hello! Who are you?", "What is 45 + 38?")
LATEX = (("$$", "$$", True), ("\\[", "\\]", True), ("\\(", "\\)", False), ("$", "$", False))
LONGEST, LENGTH = 4096, 2048
CHECK_EVERY_S = 1.0  # whether the model is loaded by now

SAY = gr.I18n(en=words.ENGLISH, **dict.fromkeys(("zh-CN", "zh-TW"), words.CHINESE))
# Fonts by name, from the machine: Gradio's own themes fetch theirs from elsewhere.
THEME = gr.themes.Soft(
    primary_hue="indigo",
    font=["system-ui", "-apple-system", "Segoe UI", "Noto Sans CJK SC", "sans-serif"],
    font_mono=["ui-monospace", "Consolas", "Menlo", "monospace"],
)
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16" fill="#6366f1">'
    '<rect x="1" y="1" width="14" height="11" rx="3"/><path d="M4 11v5l6-5z"/></svg>'
)
CSS = """
.figures, .about { text-align: center; opacity: .65; font-size: .85em; min-height: 1.5em }
.history .table-wrap { border: 0 }
.history td { padding: .4em; text-align: start }
.history:not(:has(td)) { display: none }
.example { border: 1px solid var(--border-color-primary) !important; border-radius: var(--radius-lg) !important }
.settings .form { flex-flow: row wrap }
.settings .form > * { flex: 1 1 240px }
"""
QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def build(engine: Callable[[], Engine]) -> gr.ChatInterface:
    """The page over what `engine()` returns; while it raises BusyError, the page says why and waits."""
    length = _slider("max_length", LONGEST, LENGTH, step=1)
    figures = gr.Markdown(elem_classes="figures", render=False)

    async def answer(
        question: str, messages: list[Message], max_length: int, top_p: float, temperature: float, request: gr.Request
    ) -> AsyncGenerator[Shown, None]:
        growing = answers(
            engine,
            question,
            messages,
            _words(request),
            max_length=max_length,
            top_p=top_p,
            temperature=temperature,
        )
        async with aclosing(growing):
            async for shown in growing:
                yield shown

    page = gr.ChatInterface(
        answer,
        title="ChatGLM-6B",
        chatbot=gr.Chatbot(
            show_label=False,
            scale=1,
            buttons=["copy"],
            latex_delimiters=[{"left": left, "right": right, "display": display} for left, right, display in LATEX],
            allow_tags=False,
            placeholder=SAY("welcome"),
            render=False,
        ),
        textbox=gr.Textbox(placeholder=SAY("ask"), autofocus=True, submit_btn=True, stop_btn=True, render=False),
        validator=lambda text: gr.validate(bool(text.strip()), ""),  # an empty box is not sent
        editable=True,
        examples=[[text] for text in EXAMPLES],
        run_examples_on_click=False,
        additional_inputs=[length, _slider("top_p", 1, 0.7), _slider("temperature", 1, 0.95)],
        additional_inputs_accordion=gr.Accordion(SAY("settings"), open=False, elem_classes="settings", render=False),
        additional_outputs=[figures],
        save_history=True,
        analytics_enabled=False,
        concurrency_limit=None,  # the engine has its own
        api_visibility="private",
        show_progress="hidden",
    )
    # Gradio's own key and name are new with each start of the server, and what was kept would be lost.
    page.saved_conversations.secret, page.saved_conversations.storage_key = "glmcpu", "glmcpu conversations"
    page.new_chat_button.value, page.new_chat_button.icon = SAY("new_chat"), None  # its icon is a file
    page.chat_history_dataset.elem_classes = ["history"]
    with page:
        # While it answers, Gradio empties it.
        page.saved_conversations.change(lambda: gr.Textbox(placeholder=SAY("ask")), None, page.textbox, **QUIET)
        _show_figures(page, figures)
        _show_model(page, engine, length)
        _let_stop(page)
    return page


def _slider(name: str, most: float, value: float, step: float = 0.01) -> gr.Slider:
    return gr.Slider(0, most, value, step=step, label=SAY(name), info=SAY(f"{name}_info"), render=False)


def _words(request: gr.Request) -> words.Words:
    return words.preferred(request.headers.get("accept-language", ""))


def _show_figures(page: gr.ChatInterface, figures: gr.Markdown) -> None:
    """Under the conversation, and gone when another one is shown."""
    column = page.chatbot.parent
    with column:
        figures.render()
    column.children.insert(1, column.children.pop())
    others = [page.chatbot.clear, page.chatbot.undo, page.new_chat_button.click, page.chat_history_dataset.click]
    gr.on(others, lambda: "", None, figures, **QUIET)


def _show_model(page: gr.ChatInterface, engine: Callable[[], Engine], length: gr.Slider) -> None:
    """The model's name, as soon as it is loaded, and a slider that ends at its context."""
    about, waiting = gr.Markdown(elem_classes="about"), gr.Timer(CHECK_EVERY_S)

    def look(request: gr.Request) -> tuple[str, gr.Slider, gr.Timer]:
        try:
            model = engine().model
        except GlmcpuError as error:
            return no_answer(error, _words(request)), gr.skip(), gr.Timer(active=isinstance(error, BusyError))
        most = min(LONGEST, model.context)
        line = _words(request)["model"].format(name=model.path.stem, context=model.context)
        return line, gr.Slider(maximum=most, value=min(LENGTH, most)), gr.Timer(active=False)

    gr.on([page.load, waiting.tick], look, None, [about, length, waiting], **QUIET)


def _let_stop(page: gr.ChatInterface) -> None:
    """An answer to a question that was edited can be stopped like any other, and stays; Gradio leaves that out."""
    *_, last = (function for function in page.fns.values() if function.name == "_submit_fn")
    edited = Dependency(page.chatbot, last.get_config(), last._id, last.fn)
    page.chatbot.edit(lambda: gr.Textbox(submit_btn=False, stop_btn=True), None, page.textbox, **QUIET)
    edited.then(
        lambda said: (said, gr.Textbox(interactive=True, submit_btn=True, stop_btn=False)),
        page.chatbot,
        [page.chatbot_state, page.textbox],
        **QUIET,
    )
    page.textbox.stop(None, None, None, cancels=[edited], api_visibility="private")
