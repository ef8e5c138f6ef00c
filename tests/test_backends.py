"""Both backends behind one face: the same operations, the same results, several sequences in one pass."""

import os
import subprocess
import sys
from typing import Any

import golden
import numpy as np
import pytest

from glmcpu import Model, backends, formats, store
from glmcpu.backends import Backend, Batch, cpu, reference
from glmcpu.cache import KVCache, Segment
from glmcpu.errors import UsageError
from glmcpu.formats import Weight
from glmcpu.models import Part

F32 = np.float32
OPERATIONS = sorted(name for name in vars(Backend) if not name.startswith("_"))


def _both() -> tuple[Backend, Backend]:
    return backends.load("cpu", 1), backends.load("reference")


def _normal(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(F32)


def _weight(name: str, O: int, I: int) -> Weight:
    arrays, bias = formats.load(name).pack(_normal(O, I)), _normal(O)
    for array in (*arrays.values(), bias):
        array.flags.writeable = False
    return Weight(name, arrays, bias, O, I)


@pytest.mark.parametrize("name", golden.BACKENDS)
def test_every_backend_has_every_operation(name: str) -> None:
    backend = backends.load(name)
    assert all(callable(getattr(backend, operation)) for operation in OPERATIONS)


def test_an_unknown_backend_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="unknown backend 'cuda'; backends: cpu reference torch"):
        backends.load("cuda")
    with pytest.raises(UsageError, match="--threads 0"):
        backends.load("cpu", 0)


@pytest.mark.parametrize("name", formats.names())
def test_products_and_embeddings_agree(name: str) -> None:
    fast, slow = _both()
    weight, x = _weight(name, 70, 96), _normal(5, 96)
    found, expected = fast.linear(x, weight), slow.linear(x, weight)
    fast.finish()
    assert np.linalg.norm(found - expected) < (1e-6 if formats.load(name).EXACT else 0.02) * np.linalg.norm(expected)
    ids = np.array([69, 0, 33, 0])
    assert np.array_equal(fast.rows(weight, ids), slow.rows(weight, ids))


def test_a_new_cache_in_the_place_of_a_freed_one_is_not_taken_for_it() -> None:
    model = Model.load(store.embedded(), threads=1, context=64).language_model
    marks = [model.config.gmask, model.config.bos]
    one, two, three = [5, 9, *marks], [7, 8, *marks], [11, 12, *marks]

    def start(ids: list[int]) -> KVCache:
        cache = model.new_cache(32)
        model.forward([Part(ids, cache)])
        return cache

    first, second = start(one), start(two)
    model.forward([Part([*one, 5], first), Part([*two, 5], second)])
    place = id(second)
    del second
    tried = []
    while not tried or id(tried[-1]) != place:
        tried.append(start(three))
        if len(tried) > 100:
            pytest.skip("its place was not used again")
    together = model.forward([Part([*one, 5, 6], first), Part([*three, 5], tried[-1])])[1]
    np.testing.assert_array_equal(together, model.forward([Part([*three, 5], start(three))])[0])


def test_the_reference_takes_a_long_weight_slab_by_slab() -> None:
    weight, x = _weight("f32", 5000, 8), _normal(2, 8)
    expected = x @ formats.unpack(weight).T + weight.bias
    np.testing.assert_allclose(reference.Backend().linear(x, weight), expected, atol=1e-5)


def test_elementwise_operations_agree() -> None:
    fast, slow = _both()
    x, h, scale, shift = _normal(7, 40), _normal(7, 40) * 2, _normal(40), _normal(40) * 2
    results = []
    for backend in (fast, slow):
        results.append(
            [
                backend.layer_norm(x, scale, shift, 1e-5),
                backend.gelu(x.copy()),
                backend.scale_add(h, 7.5, x.copy()),
            ]
        )
        backend.finish()
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("kind", "tolerance"), [("f32", 2e-6), ("int4", 2e-3)])
@pytest.mark.parametrize("D", [8, 16])
def test_several_sequences_attend_in_one_pass_each_to_its_own(D: int, kind: str, tolerance: float) -> None:
    H, lengths, before = 2, (3, 1, 9), (0, 20, 5)
    ends = np.cumsum(lengths)
    found = {}
    for backend in _both():
        caches = [backend.new_cache(2, H, D, 40, {"m": kind}) for _ in lengths]
        for cache, n in zip(caches, before, strict=True):
            if n:  # what each sequence has seen already
                seen = Segment(0, n, np.arange(n), np.full(n, n), cache)
                backend.attend(*_new(n, H, D, [seen]), H, 2)
                cache.length = n
        segments = [
            Segment(int(end - n), int(end), np.arange(seen, seen + n), np.arange(seen + 1, seen + n + 1), cache)
            for end, n, seen, cache in zip(ends, lengths, before, caches, strict=True)
        ]
        qkv, layer, batch = _new(int(ends[-1]), H, D, segments)
        together = backend.attend(qkv, layer, batch, H, 2)
        backend.finish()
        for s in segments:
            here, alone = slice(s.begin, s.end), Segment(0, s.end - s.begin, s.places, s.visible, s.cache)
            own = Batch(batch.cos[here], batch.sin[here], [alone])
            result = backend.attend(qkv[here], layer, own, H, 2)
            backend.finish()
            np.testing.assert_allclose(result, together[here], rtol=0, atol=1e-6)
        assert [cache.length for cache in caches] == list(before)
        found[type(backend)] = together
    np.testing.assert_allclose(found[cpu.Backend], found[reference.Backend], atol=tolerance)


def _new(T: int, H: int, D: int, segments: list[Segment]) -> Any:
    angles = np.random.default_rng(T).uniform(0, 6, (T, D // 2)).astype(F32)
    qkv = _normal(T, H * 3 * D)
    return qkv, 1, Batch(np.cos(angles), np.sin(angles), segments)


@pytest.mark.parametrize("threads", [1, 2])
def test_repeated_operations_give_what_they_give_anew(threads: int) -> None:
    backend, scale = backends.load("cpu", threads), np.ones(40, F32)
    times = []

    def compute(x: Any, batch: Batch) -> Any:
        times.append(1)
        return backend.gelu(backend.layer_norm(x, scale, scale, 1e-5))

    caches = [backend.new_cache(1, 1, 8, 9, {}) for _ in range(2)]
    for cache in (*caches, caches[0]):
        for n in range(3):
            x, places = _normal(2, 40) + n, np.arange(2) + n
            batch = Batch(x[:, :1].copy(), x[:, :1].copy(), [Segment(0, 2, places, places + 1, cache)])
            with backend.exclusive():
                found = backend.repeat(x, batch, compute)
                expected = backend.gelu(backend.layer_norm(x, scale, scale, 1e-5))
            assert np.array_equal(found, expected)
    assert len(times) == 2


def test_the_cache_is_half_precision_only_beside_quantized_weights() -> None:
    fast, slow = _both()
    for kinds, dtype in (({"a": "f32", "b": "f16"}, F32), ({"a": "f16", "b": "int4_g32"}, np.uint16)):
        assert fast.new_cache(1, 1, 16, 16, kinds).keys.dtype == dtype
        assert slow.new_cache(1, 1, 16, 16, kinds).keys.dtype == F32
        assert backends.load("cpu", 1, "int8").new_cache(1, 1, 16, 16, kinds).keys.dtype == np.int8
    with pytest.raises(UsageError, match="cache='int4': known are f32 f16 int8"):
        backends.load("cpu", 1, "int4")
    with pytest.raises(UsageError, match="cache='int8': the reference backend keeps f32"):
        backends.load("reference", None, "int8")


def test_two_threads_take_turns_on_a_layer_that_aborts_on_concurrent_entry() -> None:
    code = """
import threading, numpy as np
from glmcpu import backends
backend, wrong = backends.load("cpu", 2), []
x, scale = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32), np.ones(128, np.float32)
with backend.exclusive():
    expected = backend.layer_norm(x, scale, scale, 1e-5)
    backend.finish()
def work():
    for _ in range(200):
        with backend.exclusive():
            found = backend.layer_norm(x, scale, scale, 1e-5)
            backend.finish()
            if not np.array_equal(found, expected):
                wrong.append(1)
workers = [threading.Thread(target=work) for _ in range(4)]
[w.start() for w in workers]
[w.join() for w in workers]
from glmcpu.kernels.threads import threading_layer
print(threading_layer(), len(wrong))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_THREADING_LAYER": "workqueue"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["workqueue", "0"], done.stderr
