"""How fast is a model on this machine, and how close to the machine's limit?

Two things are timed, forward passes both, with the choice of the likeliest token and nothing else:

    prefill   a prompt of T random ids in one pass, up to its first answer token. Bound by arithmetic: its ceiling is
              the dot product of bytes with all operands in registers (of floats, for f16 and f32), over the
              multiply-adds of the layers' matrices for T tokens and of lm_head for one
    decode    one more token for each of B sequences that hold S positions. Bound by memory: every weight is read once
              for all of them, and each one's cache; its ceiling is the speed at which the same threads read memory

Both ceilings are measured before and after each row, since a shared machine drifts, and a row is compared with the mean
of the two. Medians; the spread is from the 10th to the 90th percentile.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from glmcpu import backends, formats
from glmcpu.cache import KVCache
from glmcpu.kernels.ceiling import Ceilings as KernelCeilings
from glmcpu.model import Model, read_config
from glmcpu.models import Part
from glmcpu.packed import TOKENIZER, PackedFile

_SEED = 6


@dataclass(frozen=True)
class Plan:
    """What to measure: prompts of so many tokens, contexts of so many positions, each with so many sequences."""

    prompts: tuple[int, ...] = (128, 512, 1900)
    contexts: tuple[int, ...] = (128, 512, 1900)
    batches: tuple[int, ...] = (1, 8)
    tokens: int = 32  # decoded in one measurement
    repeats: int = 3  # measurements of a row


QUICK = Plan((128,), (128,), (1,), 8, 2)


@dataclass(frozen=True)
class Opened:
    """The file is mapped; without `compiled` the kernels are about to be compiled."""

    format: str
    weights_bytes: int
    load_s: float
    compiled: bool


@dataclass(frozen=True)
class Prefill:
    tokens: int
    tok_per_s: float
    spread: tuple[float, float]  # of tok_per_s
    first_token_s: float
    gmac_per_s: float
    peak_gmac_per_s: float
    of_ceiling: float


@dataclass(frozen=True)
class Decode:
    context: int
    batch: int
    tok_per_s: float  # of all sequences together
    spread: tuple[float, float]  # of tok_per_s
    ms_p50: float  # of a step
    gb_per_s: float
    read_gb_per_s: float
    of_ceiling: float


@dataclass(frozen=True)
class LeftOut:
    """A row for which the memory does not suffice."""

    context: int
    batch: int
    needed_bytes: int
    available_bytes: int


@dataclass(frozen=True)
class Run:
    """All that was measured; as JSON it is the last line of `glmcpu bench --json`."""

    model: str
    format: str
    cache: str
    cpu: str
    isa: str
    threads: int
    threading_layer: str
    weights_bytes: int  # read for each step
    read_gb_per_s: float
    dot_gmac_per_s: float
    fma_gmac_per_s: float
    load_s: float
    first_token_s: float | None  # of the first prompt in `prefill`
    peak_rss_bytes: int | None  # of this process so far, or of the GPU; all sequences' caches included
    prefill: list[Prefill]
    decode: list[Decode]


class Ceilings(Protocol):
    """The limits of what computes: kernels/ceiling.py, or backends/torch_ceilings.py."""

    threads: int
    read_gb_per_s: float
    dot_gmac_per_s: float
    fma_gmac_per_s: float

    def read(self) -> float: ...
    def dot(self) -> float: ...
    def fma(self) -> float: ...
    def peak_bytes(self) -> int | None: ...
    def machine(self) -> dict[str, Any]: ...


def ceilings_of(loading: Mapping[str, Any]) -> Ceilings:
    """The limits of the machine, for a model that is loaded with these options; raises what Model.load raises."""
    if loading["backend"] != "torch":
        return KernelCeilings(loading["threads"])
    backends.load("torch", device=loading["device"], dtype=loading["dtype"])  # says what is missing
    from glmcpu.backends import torch_ceilings

    return torch_ceilings.Ceilings(loading["threads"], loading["device"], loading["dtype"])


Event = Opened | Prefill | Decode | LeftOut | Run


def measure(
    path: Path,
    plan: Plan,
    ceilings: Ceilings,
    opened: Callable[[], None] = lambda: None,
    **loading: Any,
) -> Iterator[Event]:
    """Measures the packed model `path`: Opened, then each row as it is known, and at the end the Run.

    opened() is called as soon as the file is mapped; `loading` are options of Model.load. Raises what that raises,
    MachineError too when the memory does not suffice for one sequence of the longest context.
    """
    begin = time.perf_counter()
    longest = max(plan.prompts + plan.contexts) + plan.tokens
    loaded = Model.load(path, context=longest, **{**loading, "threads": ceilings.threads})
    load_s = time.perf_counter() - begin
    work = _work(path)
    opened()
    yield Opened(work.format, work.weights_bytes, load_s, loaded.is_compiled())
    loaded.compile()
    prefills: list[Prefill] = []
    decodes: list[Decode] = []
    # A context is also a prompt that was read, so the two are measured length by length.
    for length in sorted({*plan.prompts, *plan.contexts}):
        ids = prompt(loaded.config, length)
        bench = _Bench(loaded, ids, plan, ceilings, work)
        row = bench.prefill(plan.repeats if length in plan.prompts else 1)
        if length in plan.prompts:
            prefills.append(row)
            yield row
        for batch in sorted(set(plan.batches)) if length in plan.contexts else ():
            result = bench.decode(batch)
            if isinstance(result, Decode):
                decodes.append(result)
            yield result
    yield _run(path.name, work, loaded.language_model.new_cache(1).kind, ceilings, load_s, prefills, decodes)


def prompt(config: Any, length: int) -> list[int]:
    """`length` >= 2 random ids that end with [gMASK] <sop>."""
    rng = np.random.default_rng(_SEED)
    return [*rng.integers(0, min(config.mask, config.gmask), length - 2).tolist(), config.gmask, config.bos]


class _Work(NamedTuple):
    """What a pass over the model costs."""

    format: str
    exact: bool  # floats are multiplied, not bytes
    weights_bytes: int
    layers_mac: int  # multiply-adds for each token
    head_mac: int


def _work(path: Path) -> _Work:
    packed = PackedFile(path)
    generation, config = read_config(packed)
    shapes = generation.matrices(config)
    head = shapes.get("lm_head", shapes["embedding"])
    weights = packed.contents.weights
    # Of an embedding that is not the lm_head a few rows are read.
    unread = {TOKENIZER} if config.tied else {TOKENIZER, *(n for n in packed.tensors() if n.startswith("embedding."))}
    return _Work(
        format=weights,
        exact=formats.load(weights).EXACT,
        weights_bytes=sum(e.end - e.begin for name, e in packed.tensors().items() if name not in unread),
        layers_mac=sum(O * I for name, (O, I) in shapes.items() if name not in ("embedding", "lm_head")),
        head_mac=head[0] * head[1],
    )


class _Bench:
    """The measurements at one length."""

    def __init__(self, model: Model, ids: Sequence[int], plan: Plan, ceilings: Ceilings, work: _Work) -> None:
        self._model, self._available_bytes = model.language_model, model.available_bytes
        self._ids, self._plan, self._ceilings, self._work = ids, plan, ceilings, work
        self._capacity = len(ids) + 1 + plan.tokens
        self._caches: list[KVCache] = []

    def prefill(self, repeats: int) -> Prefill:
        """Reads the prompt, each time into a new cache, as a conversation does; the last one is kept."""
        peak, seconds = (self._ceilings.fma if self._work.exact else self._ceilings.dot), []
        before = peak()
        for _ in range(repeats):
            self._caches = []
            begin = time.perf_counter()
            self._caches = [self._model.new_cache(self._capacity)]
            self._model.forward([Part(self._ids, self._caches[0])]).argmax(axis=1)
            seconds.append(time.perf_counter() - begin)
        middle, T = statistics.median(seconds), len(self._ids)
        gmac_per_s = (T * self._work.layers_mac + self._work.head_mac) / middle / 1e9
        peak_gmac_per_s = (before + peak()) / 2
        low, high = _percentiles(seconds)
        return Prefill(
            tokens=T,
            tok_per_s=T / middle,
            spread=(T / high, T / low),
            first_token_s=middle,
            gmac_per_s=gmac_per_s,
            peak_gmac_per_s=peak_gmac_per_s,
            of_ceiling=gmac_per_s / peak_gmac_per_s,
        )

    def decode(self, batch: int) -> Decode | LeftOut:
        """Continues `batch` sequences together, from the prompt on, with copies of its cache."""
        needed, have = (batch - len(self._caches)) * self._caches[0].nbytes, self._available_bytes()
        if have is not None and needed > have:
            return LeftOut(len(self._ids), batch, needed, have)
        while len(self._caches) < batch:
            self._caches.append(self._copy())
        before = self._ceilings.read()
        seconds = [s for _ in range(self._plan.repeats) for s in self._steps(self._caches[:batch])]
        read_gb_per_s = (before + self._ceilings.read()) / 2
        middle, context = statistics.median(seconds), len(self._ids)
        cache = self._caches[0]
        positions = cache.prefix + context + (1 + self._plan.tokens) / 2
        read_bytes = self._work.weights_bytes + batch * cache.position_bytes * positions
        low, high = _percentiles(seconds)
        return Decode(
            context=context,
            batch=batch,
            tok_per_s=batch / middle,
            spread=(batch / high, batch / low),
            ms_p50=1e3 * middle,
            gb_per_s=read_bytes / middle / 1e9,
            read_gb_per_s=read_gb_per_s,
            of_ceiling=read_bytes / middle / 1e9 / read_gb_per_s,
        )

    def _steps(self, caches: Sequence[KVCache]) -> Iterator[float]:
        """The seconds of each step."""
        texts = [[*self._ids, self._ids[0]] for _ in caches]
        for cache in caches:
            cache.length = len(self._ids)
        for _ in range(self._plan.tokens):
            begin = time.perf_counter()
            chosen = self._model.forward(list(map(Part, texts, caches))).argmax(axis=1)
            yield time.perf_counter() - begin
            for text, token in zip(texts, chosen.tolist(), strict=True):
                text.append(token)

    def _copy(self) -> KVCache:
        """Another sequence's cache with memory of its own."""
        other = self._model.new_cache(self._capacity)
        other.copy_from(self._caches[0])
        return other


def _percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """The 10th and the 90th percentile."""
    low, high = np.percentile(seconds, (10, 90))
    return float(low), float(high)


def _run(
    model: str,
    work: _Work,
    cache: str,
    ceilings: Ceilings,
    load_s: float,
    prefills: list[Prefill],
    decodes: list[Decode],
) -> Run:
    here = ceilings.machine()
    return Run(
        model=model,
        format=work.format,
        cache=cache,
        cpu=here["cpu"],
        isa=here["isa"],
        threads=ceilings.threads,
        threading_layer=here["threading_layer"],
        weights_bytes=work.weights_bytes,
        read_gb_per_s=ceilings.read_gb_per_s,
        dot_gmac_per_s=ceilings.dot_gmac_per_s,
        fma_gmac_per_s=ceilings.fma_gmac_per_s,
        load_s=load_s,
        first_token_s=prefills[0].first_token_s if prefills else None,
        peak_rss_bytes=ceilings.peak_bytes(),
        prefill=prefills,
        decode=decodes,
    )
