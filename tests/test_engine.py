"""The engine: each answer is the one it would be alone, whoever comes, leaves or fails beside it."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from glmcpu import BusyError, DataError, Engine, MachineError, Model, Sampler, Stream, Token, UsageError, store
from glmcpu.convert import convert
from glmcpu.generate import begin

QUESTIONS = (
    "hello",
    "My name is Bob.",
    "把苹果翻译成英文",
    "What is 45 + 38?",
    "repeat: alpha beta gamma alpha beta gamma alpha beta gamma",
    "你好",
    "How do I convert the checkpoint?",
    "Reverse: red, green, blue",
)

LONG = 20_000
ANYTHING = Sampler(temperature=100, top_p=1, top_k=0, seed=3)


@pytest.fixture(scope="module", params=["f16", "int4_g32"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = store.embedded()
    if request.param != "f16":
        path = convert(path, tmp_path_factory.mktemp("engine") / "model.safetensors", weights=request.param)
    return Model.load(path, context=256)


@pytest.fixture(scope="module")
def small() -> Model:
    """With room for answers that no test waits for the end of."""
    return Model.load(store.embedded(), context=LONG)


def prompt(model: Model, question: str) -> list[int]:
    assert model.tokenizer is not None
    return model.tokenizer.encode(model.tokenizer.chat_prompt(question))


def requests(model: Model) -> list[tuple[list[int], dict[str, Any]]]:
    """Every other one sampled; lengths and stops of all kinds."""
    found = []
    for n, question in enumerate(QUESTIONS * 2):
        options: dict[str, Any] = {"max_new_tokens": (60, 7, 1)[n % 3], "sampler": None}
        if n % 2:
            options["sampler"] = Sampler(temperature=1.2, top_p=0.95, seed=n)
        if n % 5 == 4:
            options["stop"] = ["e"]
        found.append((prompt(model, question), options))
    return found


def alone(model: Model, ids: list[int], options: dict[str, Any]) -> list[Token]:
    return list(model.generate(ids, **options))


class Watched:
    """The model's forward, which calls `before` with the number of sequences and may be told to fail."""

    def __init__(self, model: Model, before: Callable[[int], None]) -> None:
        self._inner, self._before = model.language_model, before

    def forward(self, parts: Sequence[Any], **options: Any) -> Any:
        self._before(len(parts))
        return self._inner.forward(parts, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.fixture
def watched(small: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[int], None]], Model]]:
    def watch(before: Callable[[int], None]) -> Model:
        monkeypatch.setattr(small, "language_model", Watched(small, before))
        return small

    yield watch
    monkeypatch.undo()


def endless(model: Model, engine: Engine) -> Stream:
    """A request that draws any ids, of which the end is one in thousands: with this seed it is late."""
    return engine.submit(prompt(model, "hello"), sampler=ANYTHING, max_new_tokens=LONG)


# --- the same answers ---


@pytest.mark.parametrize("parallel", [1, 3, 8, 20])
@pytest.mark.parametrize("pause_s", [0.0, 10.0])
def test_every_answer_is_the_one_it_would_be_alone(model: Model, parallel: int, pause_s: float) -> None:
    asked = requests(model)
    with Engine(model, parallel=parallel, pause_s=pause_s) as engine:
        streams = [engine.submit(ids, **options) for ids, options in asked]
        assert [list(stream) for stream in streams] == [alone(model, ids, options) for ids, options in asked]
        assert engine.state().running == engine.state().waiting == 0


def test_threads_share_an_engine(small: Model) -> None:
    asked = requests(small)
    answers: dict[int, list[Token]] = {}
    with Engine(small, parallel=4) as engine:

        def ask(n: int) -> None:
            answers[n] = list(engine.submit(asked[n][0], **asked[n][1]))

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(asked))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [answers[n] for n in range(len(asked))] == [alone(small, ids, options) for ids, options in asked]


def test_asyncio_waits_for_many_at_once(small: Model) -> None:
    asked = requests(small)

    async def ask(engine: Engine, ids: list[int], options: dict[str, Any]) -> list[Token]:
        return [token async for token in engine.submit(ids, **options)]

    async def all_of_them(engine: Engine) -> list[list[Token]]:
        return await asyncio.gather(*(ask(engine, ids, options) for ids, options in asked))

    with Engine(small) as engine:
        answers = asyncio.run(all_of_them(engine))
    assert answers == [alone(small, ids, options) for ids, options in asked]


# --- taking turns ---


def test_running_answers_go_on_while_a_prompt_is_read(small: Model) -> None:
    with Engine(small, pause_s=0) as engine:
        running = iter(endless(small, engine))
        next(running)
        before = len(engine._running[0].stream.answer.ids)
        next(iter(engine.submit(prompt(small, "hello " * 50))))
        after = len(engine._running[0].stream.answer.ids)
        running.close()  # type: ignore[attr-defined]
    assert after - before >= small.config.layers - 1


def test_several_short_prompts_in_a_row_do_not_hold_up_a_running_answer(
    small: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(small, pause_s=1.0)
    engine.close()  # from here on this thread is the engine's

    def request() -> Stream:
        answer = begin(small.config.eos, small.tokenizer, prompt(small, "hello"), context=LONG, sampler=ANYTHING)
        return Stream(answer, 0, lambda stream: None)

    running = request()
    engine._start(running)
    before = len(running.answer.ids)
    clock = itertools.count(time.monotonic(), 0.1)  # half a second for each prompt
    monkeypatch.setattr("glmcpu.engine.time.monotonic", lambda: next(clock))
    for _ in range(8):
        engine._start(request())
    assert len(running.answer.ids) - before >= 3


def test_requests_are_admitted_in_order_and_no_more_than_have_a_place(
    watched: Callable[[Callable[[int], None]], Model],
) -> None:
    most = 0

    def before(sequences: int) -> None:
        nonlocal most
        most = max(most, sequences)

    model, ended = watched(before), []
    with Engine(model, parallel=2) as engine:
        streams = [engine.submit(prompt(model, "hello"), max_new_tokens=5) for _ in range(6)]
        for n, stream in enumerate(streams):
            list(stream)
            ended.append(n)
            assert engine.state().waiting <= max(0, 4 - n)
    assert most == 2


def test_memory_of_caches_is_a_bound_too(watched: Callable[[Callable[[int], None]], Model]) -> None:
    most = 0

    def before(sequences: int) -> None:
        nonlocal most
        most = max(most, sequences)

    model = watched(before)
    ids = prompt(model, "hello")
    with Engine(model, cache_bytes=2 * model.cache_bytes(len(ids) + 512)) as engine:
        for stream in [engine.submit(ids) for _ in range(5)]:
            assert list(stream)
    assert most == 2


def test_a_request_whose_cache_never_fits_is_refused(small: Model) -> None:
    with Engine(small, cache_bytes=1000) as engine, pytest.raises(MachineError, match="ask for fewer tokens"):
        engine.submit(prompt(small, "hello"))


def test_whether_there_is_room_can_be_asked_beforehand_counting_those_still_to_come(small: Model) -> None:
    with Engine(small, parallel=1, waiting=1) as engine:
        engine.check_room(1)
        with pytest.raises(BusyError, match="again later"):
            engine.check_room(2)
        stream = endless(small, engine)
        engine.check_room()
        with pytest.raises(BusyError, match="again later"):
            engine.check_room(1)
        stream.cancel()
    with pytest.raises(BusyError, match="shutting down"):
        engine.check_room()


def test_full_places_are_refused_at_once_and_free_again_later(small: Model) -> None:
    with Engine(small, parallel=1, waiting=1) as engine:
        streams = [endless(small, engine) for _ in range(2)]
        with pytest.raises(BusyError, match="again later"):
            engine.submit(prompt(small, "hello"))
        for stream in streams:
            stream.cancel()
            list(stream)
        assert list(engine.submit(prompt(small, "hello")))


# --- leaving ---


def test_cancelled_answer_ends_within_two_tokens(small: Model) -> None:
    with Engine(small) as engine:
        others = [endless(small, engine) for _ in range(2)]
        stream = endless(small, engine)
        tokens = iter(stream)
        next(tokens)
        stream.cancel()
        length = len(stream.answer.ids)
        list(tokens)
        assert len(stream.answer.ids) - length <= 2
        assert engine.state().running == 2
        for other in others:
            other.cancel()


def test_cancelled_request_waits_no_longer(small: Model) -> None:
    with Engine(small, parallel=1) as engine:
        first, second = endless(small, engine), endless(small, engine)
        next(iter_once(first))
        second.cancel()
        assert list(second) == []
        assert engine.state().waiting == 0
        first.cancel()


def test_prompt_that_is_read_for_nobody_is_left_at_the_next_layer(small: Model) -> None:
    with Engine(small) as engine:
        stream = engine.submit(prompt(small, "hello " * 50))
        stream.cancel()
        assert list(stream) == []
        assert list(engine.submit(prompt(small, "hello"))) == alone(small, prompt(small, "hello"), {})


def test_leaving_the_loop_cancels(small: Model) -> None:
    with Engine(small) as engine:
        stream = endless(small, engine)
        for _ in stream:
            break
        deadline = time.monotonic() + 10
        while engine.state().running and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stream.cancelled
        assert engine.state().running == 0


def test_leaving_an_asynchronous_loop_cancels(small: Model) -> None:
    async def leave(engine: Engine) -> Stream:
        stream = endless(small, engine)
        tokens = aiter(stream)
        await anext(tokens)
        await tokens.aclose()  # type: ignore[attr-defined]
        return stream

    with Engine(small) as engine:
        assert asyncio.run(leave(engine)).cancelled


def test_cancelling_twice_or_after_the_end_changes_nothing(small: Model) -> None:
    with Engine(small) as engine:
        stream = engine.submit(prompt(small, "hello"))
        tokens = list(stream)
        stream.cancel()
        stream.cancel()
        assert tokens == alone(small, prompt(small, "hello"), {})
        assert engine.state().running == 0


# --- failing ---


def test_ids_the_model_cannot_read_fail_alone(small: Model) -> None:
    with Engine(small) as engine:
        good, bad = engine.submit(prompt(small, "hello")), engine.submit([5, 6, 7])
        with pytest.raises(DataError, match="sop"):
            list(bad)
        assert list(good) == alone(small, prompt(small, "hello"), {})


def test_failure_of_a_pass_is_that_of_its_answers_and_the_next_request_is_served(
    watched: Callable[[Callable[[int], None]], Model],
) -> None:
    failing = False

    def before(sequences: int) -> None:
        if failing:
            raise MachineError("no memory")

    model = watched(before)
    with Engine(model) as engine:
        streams = [endless(model, engine) for _ in range(2)]
        for stream in streams:
            next(iter_once(stream))
        failing = True
        for stream in streams:
            with pytest.raises(MachineError, match="no memory"):
                list(stream)
        failing = False
        assert list(engine.submit(prompt(model, "hello")))
        assert engine.state().failure == ""


def iter_once(stream: Stream) -> Iterator[Token]:
    """One token, without leaving a loop."""
    with stream._change:
        stream._change.wait_for(lambda: stream._arrived)
    yield stream._arrived[0]  # type: ignore[misc]


@pytest.mark.parametrize("options", [{"parallel": 0}, {"parallel": 1.5}, {"waiting": -1}, {"waiting": "many"}])
def test_numbers_out_of_range_are_refused(options: dict[str, Any], small: Model) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        Engine(small, **options)


def test_what_generate_refuses_is_refused_before_it_waits(small: Model) -> None:
    with Engine(small) as engine:
        with pytest.raises(UsageError, match="max_new_tokens"):
            engine.submit(prompt(small, "hello"), max_new_tokens=0)
        with pytest.raises(DataError, match="context"):
            engine.submit([5] * LONG)


# --- ending ---


def test_closing_waits_for_what_runs_within_the_grace(small: Model) -> None:
    engine = Engine(small)
    stream = engine.submit(prompt(small, "hello"))
    engine.close(grace_s=60)
    assert list(stream) == alone(small, prompt(small, "hello"), {})
    with pytest.raises(BusyError, match="shutting down"):
        engine.submit(prompt(small, "hello"))


def test_closing_without_grace_ends_what_runs_and_waits(small: Model) -> None:
    engine = Engine(small, parallel=1)
    streams = [endless(small, engine) for _ in range(3)]
    engine.close()
    for stream in streams:
        assert all(not token.finish_reason for token in stream)
    assert engine.state() == type(engine.state())(0, 0, "the engine has ended")


def test_engine_is_public() -> None:
    import glmcpu

    assert {"Engine", "Stream", "BusyError"} <= set(glmcpu.__all__)
    assert Path(glmcpu.__file__).exists()
