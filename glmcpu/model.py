"""Model: where the parts meet. A packed file, a backend, the tokenizer; ids, text and conversations out of them.

model = Model.load("chatglm-6b-int4_g32")
for piece in model.start_chat().say("你好"):
    print(piece, end="", flush=True)
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glmcpu import backends, limits, memory, models, store
from glmcpu import chat as conversation
from glmcpu import packed as packed_file
from glmcpu.cache import kind_beside
from glmcpu.chat import ChatSession
from glmcpu.errors import DataError, UsageError, printable, shown
from glmcpu.generate import Options, Progress, Token, generate, whole_numbers
from glmcpu.models import Generation, LanguageModel, Part
from glmcpu.packed import PackedFile
from glmcpu.rounds import Round
from glmcpu.sampling import Sampler
from glmcpu.tokenizers.chatglm import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from glmcpu.adapters import Adapter


class Model:
    """A loaded model. Threads may share it: forward passes take turns."""

    def __init__(
        self,
        path: Path,
        model: LanguageModel,
        tokenizer: Tokenizer | None,
        context: int,
        cache_bytes: Callable[[int], int],
        drafts: bool = True,
        adapter: "Adapter | None" = None,
        available_bytes: Callable[[], int | None] = memory.available_bytes,
        computed_by: str = "cpu",
    ) -> None:
        """`load` makes one.

        language_model   ids to scores, several sequences in a pass: for the engine and for measuring
        cache_bytes      memory of a full cache of so many tokens
        drafts           whether a pass over several ids gives the very scores of passes over one
        adapter          what was loaded beside the weights
        available_bytes  memory there is where the model runs
        computed_by      the backend, and for torch its precision
        """
        self.path = path
        self.context = context
        self.tokenizer = tokenizer
        self.language_model = model
        self.cache_bytes = cache_bytes
        self.drafts = drafts
        self.adapter = adapter
        self.available_bytes = available_bytes
        self.computed_by = computed_by

    @classmethod
    def load(
        cls,
        path_or_name: str | os.PathLike[str],
        *,
        threads: int | None = None,
        context: int | None = None,
        backend: str = "cpu",
        cache: str | None = None,
        adapter: str | os.PathLike[str] | None = None,
        lora_alpha: float | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> "Model":
        """Opens a packed model by path, or by name in the models folder; nothing is copied into memory.

        threads   of the kernels; None: one for each physical core
        context   tokens of prompt and answer together; None: as many as the model was trained on, 2048 for ChatGLM-6B;
                  beyond that quality falls
        backend   "cpu"; "torch": on a GPU, needs the extra "torch"; or "reference": plain NumPy, exact and slow
        cache     how keys and values are kept: "f16", "int8" (half the memory) or "f32"; None: f16 beside quantized
                  weights, f32 beside others
        adapter   a folder or file with a P-Tuning v2 prefix or LoRA matrices (adapters/), used beside the weights
        lora_alpha  for LoRA files that do not say it; 32 is assumed
        device    of torch: "cuda", "mps" or "cpu"; None: the best there is
        dtype     of torch's products: "f16", "bf16" or "f32"; None: f32 on a CPU, f16 elsewhere

        Raises DataError for a file that is missing, damaged or no packed model or adapter, UsageError for an option
        out of range, MachineError when the memory does not suffice.
        """
        if context is not None and (not isinstance(context, int) or not 1 <= context <= limits.CONTEXT):
            raise UsageError(f"context={printable(context)}: a whole number from 1 to {limits.CONTEXT:,} is needed")
        arithmetic = backends.load(backend, threads, cache, device, dtype)
        packed = PackedFile(store.find(path_or_name))
        generation, config = read_config(packed)
        if context is None:
            context = min(config.trained_context, limits.CONTEXT)
        added = None
        if adapter is not None:
            from glmcpu import adapters
            from glmcpu.adapters.beside import attach

            added = adapters.read(adapter, config, lora_alpha=lora_alpha)
            arithmetic = attach(arithmetic, added.prefix, added.low_rank, packed.formats)
        elif lora_alpha is not None:
            raise UsageError(f"lora_alpha={printable(lora_alpha)}: is for LoRA matrices; name them with adapter")
        prefix, kind = added.prefix_tokens if added else 0, arithmetic.cache_kind(packed.formats)

        def cache_bytes(tokens: int) -> int:
            return generation.cache_bytes(config, prefix + tokens, kind)

        memory.require(
            packed.size_bytes + cache_bytes(context),
            f"{shown(packed.path)} with a context of {context:,}",
            arithmetic.available_bytes(),
        )
        model, tokenizer = generation.build(config, packed, arithmetic), _tokenizer(packed, config)
        return cls(
            packed.path,
            model,
            tokenizer,
            context,
            cache_bytes,
            drafts=backend == "cpu",  # library products round one row another way than several
            adapter=added,
            available_bytes=arithmetic.available_bytes,
            computed_by=f"torch {dtype or kind}" if backend == "torch" else backend,
        )

    @property
    def config(self) -> Any:
        """The hyperparameters and special ids: the Config of the model's generation."""
        return self.language_model.config

    def is_compiled(self) -> bool:
        """Whether the first forward is quick: this machine keeps all kernels it needs."""
        return self.language_model.is_compiled()

    def compile(self) -> None:
        """Compiles the kernels, or loads the compiled ones, by reading a few tokens."""
        pad, gmask, bos = self.config.pad, self.config.gmask, self.config.bos
        prompt, cache = [*[pad] * 14, gmask, bos], self.language_model.new_cache(17)
        for ids in (prompt, [*prompt, pad]):
            self.language_model.forward([Part(ids, cache)])

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The official forward over `ids`, [gMASK] or [MASK] and <sop> included: scores (T, V) after each id.

        The context does not bound it. Raises DataError for ids outside the vocabulary or without those tokens.
        """
        known = whole_numbers(ids)
        return self.language_model.forward([Part(known, self.language_model.new_cache(max(1, len(known))))], every=True)

    def generate(
        self,
        ids: Sequence[int],
        *,
        progress: Progress | None = None,
        lookup: bool = True,
        **options: "Unpack[Options]",
    ) -> Iterator[Token]:
        """Continues `ids`, as `options` say: sampler, max_new_tokens, stop, post, constraint, top.

        See generate.py for them, for what ends the answer, and for Token.

        progress(layers done, layers) is called while the prompt is read. `lookup` guesses ahead from what stands in
        `ids` and the answer already (lookup.py): the same tokens, several a pass where the text repeats itself; the
        cpu backend does, the others do not. Raises DataError and UsageError before the first token.
        """
        return generate(
            self.language_model,
            self.tokenizer,
            ids,
            context=self.context,
            progress=progress,
            lookup=lookup and self.drafts,
            **options,
        )

    def chat(
        self, query: str, history: Sequence[Sequence[str]] | None = None, **options: Any
    ) -> tuple[str, list[Round]]:
        """The official chat(): (response, history with the new round); options and defaults as there.

        max_length=2048, do_sample=True, top_p=0.7, temperature=0.95, top_k=50, repetition_penalty=1.0, and seed,
        max_new_tokens, lookup=True. Raises UsageError for other options, DataError when the model has no tokenizer.
        """
        return conversation.chat(self, query, history, **options)

    def stream_chat(
        self, query: str, history: Sequence[Sequence[str]] | None = None, **options: Any
    ) -> Iterator[tuple[str, list[Round]]]:
        """The official stream_chat(): (response so far, history with it), again and again; options as in `chat`."""
        return conversation.stream_chat(self, query, history, **options)

    def start_chat(
        self,
        *,
        sampler: Sampler | None = None,
        max_new_tokens: int | None = None,
        system: str | None = None,
        lookup: bool = True,
    ) -> ChatSession:
        """A conversation that remembers its rounds; `say` gives the answer in pieces."""
        return ChatSession(self, sampler=sampler, max_new_tokens=max_new_tokens, system=system, lookup=lookup)


def read_config(packed: PackedFile) -> tuple[Generation, Any]:
    """The generation and its Config; raises DataError when it is none we have, or the config is not one of it."""
    name, kind = shown(packed.path), packed.contents.generation
    if kind not in models.names():
        raise DataError(
            f"{name}: generation {printable(kind)!r}, and this glmcpu runs {' '.join(models.names())}; upgrade glmcpu"
        )
    generation = models.load(kind)
    try:
        config = generation.Config(**packed.contents.config)
    except TypeError as error:
        raise DataError(f"{name}: the config has other fields than expected; convert the model again") from error
    for field in dataclasses.fields(generation.Config):
        value = getattr(config, field.name)
        if type(value) is not field.type and not (field.type is float and type(value) is int):
            raise DataError(f"{name}: config {field.name} is {printable(value)!r}; convert the model again")
    generation.check(config, name)
    return generation, config


def verify(path: Path, progress: Progress | None = None) -> None:
    """Reads all of a packed file: every checksum, and whether config, tensors and tokenizer make a model.

    progress(bytes done, bytes in all). Raises DataError saying what is wrong.
    """
    packed = packed_file.verify(path, progress)
    generation, config = read_config(packed)
    generation.build(config, packed, backends.load("reference"))
    _tokenizer(packed, config)


def open_tokenizer(data: bytes, config: Any, name: str) -> Tokenizer:
    """The tokenizer of a model; raises DataError, beginning with `name`, when it is not the one of this config.

    The end token is not compared: a config may name another one.
    """
    tokenizer = Tokenizer(data, vocab_size=config.vocabulary, image_tokens=config.image_tokens, name=name)
    for field in ("bos", "mask", "gmask"):
        found, expected = getattr(tokenizer, field), getattr(config, field)
        if found != expected:
            raise DataError(
                f"{shown(name)}: has id {found:,} for {field} and the model's config {expected:,}: they belong to "
                "different models; fetch all files from one revision"
            )
    return tokenizer


def _tokenizer(packed: PackedFile, config: Any) -> Tokenizer | None:
    data = packed.tokenizer()
    return None if data is None else open_tokenizer(data, config, f"{packed.path}: tokenizer")


@dataclasses.dataclass(frozen=True)
class Description:
    """What `glmcpu info` and `ls` say of a packed file."""

    generation: str
    weights: str
    config: Any
    formats: dict[str, str]
    source: dict[str, Any]
    bits_per_weight: float
    file_bytes: int
    has_tokenizer: bool

    def memory_bytes(self, context: int) -> int:
        """Memory a conversation needs: the mapped file and a full cache of `context` tokens."""
        kind = kind_beside(self.formats)
        return self.file_bytes + models.load(self.generation).cache_bytes(self.config, context, kind)


def describe(path: Path) -> Description:
    """Reads a packed file's header; raises DataError as `Model.load` does."""
    packed = PackedFile(path)
    generation, config = read_config(packed)
    weights = sum(O * I for O, I in generation.matrices(config).values())
    stored = sum(
        entry.end - entry.begin
        for name, entry in packed.tensors().items()
        if name.rpartition(".")[0] in packed.formats and not name.endswith(".bias")
    )
    return Description(
        generation=packed.contents.generation,
        weights=packed.contents.weights,
        config=config,
        formats=dict(packed.formats),
        source=dict(packed.contents.source),
        bits_per_weight=8 * stored / weights,
        file_bytes=packed.size_bytes,
        has_tokenizer=packed.tokenizer() is not None,
    )
