"""llama.cpp as a contestant of peers.py; run by it with MODEL THREADS CONTEXT SEQUENCES in the peers' environment.

Its C interface, called from Python: no text, no sampler chain. Flash attention is on; several sequences have a buffer
each (kv_unified off), which is the faster way for chats that share no prompt. Everything else is its default: half
precision cache, the file mapped, weights repacked for this CPU.
"""

import ctypes

import llama_cpp
import numpy as np
from peer_worker import serve_model

BATCH = 512  # tokens of one pass over the weights; 2048 measured 4 % slower


class LlamaCpp:
    """A context for `sequences` sequences of `context` tokens."""

    about = f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"

    def __init__(self, file: str, threads: int, context: int, sequences: int) -> None:
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max, settings.kv_unified = context * sequences, sequences, False
        settings.n_batch = settings.n_ubatch = BATCH
        settings.n_threads = settings.n_threads_batch = threads
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._context = llama_cpp.llama_init_from_model(model, settings)
        if not self._context:
            raise SystemExit(f"llama.cpp cannot open {file}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self._sequences = sequences

    def prefill(self, ids: list[int]) -> None:
        llama_cpp.llama_memory_clear(self._memory, False)
        for begin in range(0, len(ids), BATCH):
            part = ids[begin : begin + BATCH]
            self._decode([(id_, begin + i, 0, begin + i == len(ids) - 1) for i, id_ in enumerate(part)])
        self._first = self._chosen = [self._likeliest(len(part) - 1)] * self._sequences
        self._length = len(ids)
        for sequence in range(1, self._sequences):  # with buffers of their own this is a copy
            llama_cpp.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)

    def rewind(self, n: int) -> None:
        for sequence in range(self._sequences):
            llama_cpp.llama_memory_seq_rm(self._memory, sequence, n, -1)
        self._length, self._chosen = n, self._first

    def step(self) -> None:
        self._decode([(id_, self._length, sequence, True) for sequence, id_ in enumerate(self._chosen)])
        self._chosen = [self._likeliest(i) for i in range(self._sequences)]
        self._length += 1

    def _decode(self, tokens: list[tuple[int, int, int, bool]]) -> None:
        """One pass over tokens (id, position, sequence, whether its scores are wanted)."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, (id_, position, sequence, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = id_, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if code := llama_cpp.llama_decode(self._context, batch):
            raise SystemExit(f"llama_decode failed with {code}")

    def _likeliest(self, i: int) -> int:
        scores = llama_cpp.llama_get_logits_ith(self._context, i)
        return int(np.ctypeslib.as_array(scores, (self._vocabulary,)).argmax())


if __name__ == "__main__":
    serve_model(LlamaCpp)
