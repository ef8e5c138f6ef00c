"""The held-out script: questions with names, numbers and wordings that training never saw, and how many are right."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from demo.corpus import held_out
from demo.example import Example
from glmcpu import Model

SEED = 7
PER_TOPIC = 50  # in each language
GOALS = {"recall": 0.9, "copy": 0.9}  # the others 0.8


@dataclass
class Result:
    """How many answers were given and right, by (topic, language), and the wrong ones."""

    given: Counter[tuple[str, str]] = field(default_factory=Counter)
    right: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[tuple[Example, str]] = field(default_factory=list)

    def share(self, topic: str) -> float:
        """Right answers of a topic, both languages."""
        of = [key for key in self.given if key[0] == topic]
        return sum(self.right[key] for key in of) / sum(self.given[key] for key in of)


def write_script(path: Path, examples: Iterable[Example] | None = None) -> Path:
    """The held-out script, or other examples, as JSONL that `glmcpu eval` and --calibrate read; returns the path."""
    with path.open("w", encoding="utf-8") as file:
        for example in held_out(SEED, PER_TOPIC) if examples is None else examples:
            line = {"prompt": example.prompt, "response": example.response, "history": example.history}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return path


def check(path: Path, per_topic: int = PER_TOPIC, backend: str = "cpu") -> Result:
    """Asks a packed model all of them, greedily."""
    model, result = Model.load(path, backend=backend), Result()
    for example in held_out(SEED, per_topic):
        answer, _ = model.chat(example.prompt, example.history, do_sample=False, max_new_tokens=100)
        key = example.topic, example.language
        result.given[key] += 1
        if example.is_right(answer):
            result.right[key] += 1
        else:
            result.wrong.append((example, answer))
    return result


def table(results: dict[str, Result]) -> str:
    """The shares as a Markdown table: a row for each topic and language, a column for each model."""
    lines = ["| topic | | " + " | ".join(results) + " |", "|---|---" + "|---:" * len(results) + "|"]
    for topic, language in next(iter(results.values())).given:
        shares = [r.right[topic, language] / r.given[topic, language] for r in results.values()]
        lines.append(f"| {topic} | {language} | " + " | ".join(f"{share:.0%}" for share in shares) + " |")
    return "\n".join(lines)
