"""chatglm.cpp as a contestant of peers.py; run by it with MODEL THREADS CONTEXT SEQUENCES in the peers' environment.

It takes its own number of threads and has no option for it, and it knows one sequence.
"""

import chatglm_cpp
from chatglm_cpp import _C
from peer_worker import serve_model


class ChatglmCpp:
    """Its C++ model, called as its own Pipeline calls it for greedy decoding."""

    about = f"chatglm.cpp {chatglm_cpp.__version__}"

    def __init__(self, file: str, threads: int, context: int, sequences: int) -> None:
        if sequences != 1:
            raise SystemExit("chatglm.cpp decodes one sequence at a time")
        self._model = chatglm_cpp.Pipeline(file, max_length=context).model
        self._greedy = _C.GenerationConfig(max_length=context, max_context_length=context, do_sample=False)

    def prefill(self, ids: list[int]) -> None:
        self._ids, self._prompt, self._past = list(ids), len(ids), 0
        self.step()

    def rewind(self, n: int) -> None:
        self._ids, self._past = self._ids[: n + 1], n

    def step(self) -> None:
        chosen = self._model.generate_next_token(self._ids, None, self._greedy, self._past, self._prompt)
        self._past = len(self._ids)
        self._ids.append(chosen)


if __name__ == "__main__":
    serve_model(ChatglmCpp)
