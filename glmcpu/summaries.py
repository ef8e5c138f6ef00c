"""How near is a text to the one that was expected? BLEU and ROUGE count the pieces that the two share.

    BLEU-4      Papineni et al. 2002: of the 1 to 4 characters in a row of the answer, the share that the label has too,
                the geometric mean of the four; times exp(1 - label / answer) where the answer is the shorter one
    ROUGE-1, 2  Lin 2004: of the different words, and pairs of words in a row, the share found (recall) and the share
                right (precision); their harmonic mean
    ROUGE-L     the same for the longest sequence of words that both have in this order, with gaps

They do not ask whether an answer is true or well written; numbers compare only between runs over one data set. And they
depend on details, which are those of ptuning/main.py of ChatGLM-6B, by the same libraries: BLEU over the characters of
each text with NLTK, a share of zero smoothed (method 3), ROUGE over jieba's words with rouge_chinese, each score in
percent rounded to four digits, then the mean over all texts. Official code fails at an empty answer; here it scores 0.
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from glmcpu.errors import DataError, UsageError


class Scores(NamedTuple):
    """In percent, 0 to 100."""

    bleu_4: float
    rouge_1: float
    rouge_2: float
    rouge_l: float


class Scorer:
    """Compares answers with what was expected."""

    def __init__(self) -> None:
        """Reads jieba's dictionary, which takes a second; raises UsageError when a library is missing."""
        # These libraries are older than the rules for "\." in a string and than the end of pkg_resources, and Python
        # says so when it compiles or imports them.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                import jieba
                from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
                from rouge_chinese import Rouge
            except ImportError as error:
                raise UsageError(
                    'scores of summaries need jieba, nltk and rouge_chinese; get them with: pip install "glmcpu[tune]"'
                ) from error
        # Its own way keeps the dictionary in the folder for temporary files, under a name that anybody may have taken,
        # unmarshals what is there, and tells of it on stderr.
        words = jieba.Tokenizer()
        words.FREQ, words.total = words.gen_pfdict(words.get_dict_file())
        words.initialized = True
        self._cut, self._rouge = words.cut, Rouge()
        self._bleu, self._smoothing = sentence_bleu, SmoothingFunction().method3

    def score(self, answer: str, label: str) -> Scores:
        """The scores of one answer; all are 0 when it is blank. Raises DataError for a label that is."""
        if not label.strip():
            raise DataError("a label is empty; expected a text to compare with")
        if not answer.strip():
            return Scores(0.0, 0.0, 0.0, 0.0)
        bleu = self._bleu([list(label)], list(answer), smoothing_function=self._smoothing)
        found = self._rouge.get_scores(" ".join(self._cut(answer)), " ".join(self._cut(label)))[0]
        rouge = (found[name]["f"] for name in ("rouge-1", "rouge-2", "rouge-l"))
        return Scores(*(round(float(share) * 100, 4) for share in (bleu, *rouge)))


def mean(scores: Sequence[Scores]) -> Scores:
    """The mean of each score over one or more answers."""
    return Scores(*(float(np.mean(column)) for column in zip(*scores, strict=True)))
