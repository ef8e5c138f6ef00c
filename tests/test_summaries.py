"""Scores of summaries: the official numbers, the plain definitions, blank texts, and a library that must stay quiet."""

import marshal
import math
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from glmcpu.errors import DataError, UsageError
from glmcpu.summaries import Scorer, Scores, mean

# An answer and a label, both in jieba's words, and the scores that the lines of ptuning/main.py give them.
PAIRS = [
    (
        "这 款 牛仔 外套 采用 白色 的 衣身 , 简约 而 不 简单 , 十分 百搭 。",
        "简约 而 不 简单 的 牛仔 外套 , 白色 的 衣身 十分 百搭 。 衣身 多处 有 做 旧 破洞 设计 , 打破 单调乏味 。",
        (31.1126, 70.2703, 40.0, 38.0952),
    ),
    (
        "这件 连衣裙 是 圆领 的 版型 , 修饰 颈部 的 线条 。 裙摆 是 百褶 的 设计 , 走动 时 十分 飘逸 。",
        "圆领 的 设计 可以 修饰 颈部 线条 , 百褶 的 裙摆 让 整件 连衣裙 更加 飘逸 。",
        (24.9517, 70.5882, 26.3158, 45.0),
    ),
    ("好好 好好 好好", "很 好", (8.1167, 0.0, 0.0, 0.0)),
    ("今天天气 很 好", "今天天气 很 好", (100.0, 100.0, 100.0, 100.0)),
    ("好", "好", (35.3553, 100.0, 0.0, 100.0)),
    ("好", "很 好", (13.0065, 66.6667, 0.0, 66.6667)),
    ("你好 世界", "今天天气", (0.0, 0.0, 0.0, 0.0)),
]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    for library in ("jieba", "nltk", "rouge_chinese"):
        pytest.importorskip(library)
    return Scorer()


def bleu_4(answer: str, label: str) -> float:
    """Papineni et al. 2002 for one label, with the NIST's smoothing."""
    shares, halves = [], 1.0
    for n in range(1, 5):
        said, expected = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (answer, label))
        found, count = (said & expected).total(), max(1, said.total())
        if n == 1 and not found:
            return 0.0
        if not found:
            halves /= 2
        shares.append((found or halves) / count)
    return min(1.0, math.exp(1 - len(label) / len(answer))) * math.prod(shares) ** 0.25


def rouge_n(answer: Sequence[str], label: Sequence[str], n: int) -> float:
    said, expected = ({tuple(words[i : i + n]) for i in range(len(words) - n + 1)} for words in (answer, label))
    return 2 * len(said & expected) / ((len(said) + len(expected)) or 1)


def rouge_l(answer: Sequence[str], label: Sequence[str]) -> float:
    row = [0] * (len(label) + 1)
    for word in answer:
        above = row[:]
        for j, other in enumerate(label):
            row[j + 1] = above[j] + 1 if word == other else max(row[j], above[j + 1])
    return 2 * row[-1] / (len(answer) + len(label))


@pytest.mark.parametrize(("answer", "label", "official"), PAIRS)
def test_scores_are_the_official_ones(answer: str, label: str, official: tuple[float, ...], scorer: Scorer) -> None:
    assert scorer.score(answer.replace(" ", ""), label.replace(" ", "")) == official


@pytest.mark.parametrize(("answer", "label", "official"), PAIRS)
def test_scores_are_what_the_definitions_say(
    answer: str, label: str, official: tuple[float, ...], scorer: Scorer
) -> None:
    said, expected = answer.split(), label.split()
    plain = (
        bleu_4("".join(said), "".join(expected)),
        rouge_n(said, expected, 1),
        rouge_n(said, expected, 2),
        rouge_l(said, expected),
    )
    found = scorer.score("".join(said), "".join(expected))
    assert found == pytest.approx([100 * share for share in plain], abs=1e-4)


@pytest.mark.parametrize("answer", ["", " ", "\n\t", "\u3000"])
def test_a_blank_answer_scores_nothing_and_a_blank_label_is_refused(answer: str, scorer: Scorer) -> None:
    assert scorer.score(answer, "好") == (0, 0, 0, 0)
    with pytest.raises(DataError, match="label is empty"):
        scorer.score("好", answer)


@pytest.mark.parametrize("answer", ["。", "\n你好 \n\n好", "......a", "？”", "a\x1cb", "\ufeff", "🧿" * 100])
def test_odd_texts_have_scores(answer: str, scorer: Scorer) -> None:
    for label in (answer, "你好。"):
        assert all(0 <= score <= 100 for score in scorer.score(answer, label))
    assert scorer.score(answer, answer).rouge_1 == 100


def test_the_mean_is_that_of_each_column() -> None:
    assert mean([Scores(1, 2, 3, 4), Scores(3, 4, 5, 8)]) == (2, 3, 4, 6)
    assert mean([Scores(0.1, 0.2, 0.3, 0.4)]) == (0.1, 0.2, 0.3, 0.4)


def test_jieba_says_nothing_and_neither_reads_nor_writes_a_cache_that_others_could_have_put_there(
    scorer: Scorer, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cache = tmp_path / "jieba.cache"
    cache.write_bytes(marshal.dumps(({"天气很": 1000, "天": 0, "天气": 0}, 1000)))
    before = cache.read_bytes()
    answer, label, official = PAIRS[0]
    assert Scorer().score(answer.replace(" ", ""), label.replace(" ", "")) == official
    assert [path.name for path in tmp_path.iterdir()] == ["jieba.cache"]
    assert cache.read_bytes() == before
    assert capfd.readouterr() == ("", "")


def test_warnings_of_old_libraries_stay_among_themselves(scorer: Scorer) -> None:
    # -B and no prefix to look in: the libraries are compiled anew, which is when Python warns.
    code = "from glmcpu.summaries import Scorer; print(Scorer().score('好', '很好'))"
    options = ["-W", "error", "-B", "-X", "pycache_prefix=none", "-c", code]
    run = subprocess.run([sys.executable, *options], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert "rouge_1=66.6667" in run.stdout


@pytest.mark.parametrize("library", ["jieba", "nltk.translate.bleu_score", "rouge_chinese"])
def test_a_missing_library_is_named_with_what_brings_it(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=r'pip install "glmcpu\[tune\]"'):
        Scorer()
