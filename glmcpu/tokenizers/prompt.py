"""The text around the model: how a conversation becomes one prompt, and how an answer is tidied.

ChatGLM-6B knows no roles. A conversation is one text that the model continues:

    [Round 0]\\n问：first question\\n答：first answer\\n[Round 1]\\n问：second question\\n答：

and a first question stands alone, without any frame. The answer was trained with ASCII punctuation (the tokenizer's
normaliser folds the full-width marks), so `process_response` puts full-width marks back beside Chinese characters.
"""

import re
from collections.abc import Sequence

TRAINING_TIME = ("[[训练时间]]", "2023年")  # a placeholder the model was trained to say
FULL_WIDTH = {",": "，", "!": "！", ":": "：", ";": "；", "?": "？"}
CHINESE = "\u4e00-\u9fff"

_MARK_BESIDE_CHINESE = re.compile(f"(?<=[{CHINESE}])[,!:;?]|[,!:;?](?=[{CHINESE}])")


def chat_prompt(query: str, history: Sequence[tuple[str, str]] = ()) -> str:
    """The text the model continues with its answer to `query`, after the (question, answer) rounds of `history`."""
    if not history:
        return query
    rounds = [f"[Round {i}]\n问：{question}\n答：{answer}\n" for i, (question, answer) in enumerate(history)]
    return f"{''.join(rounds)}[Round {len(history)}]\n问：{query}\n答："


def process_response(text: str) -> str:
    """An answer as the official chat() returns it: stripped, the training time filled in, full-width punctuation.

    One pass gives what the official ten give: a mark's neighbours decide, and no pass changes a Chinese character.
    """
    return full_width_marks(text.strip().replace(*TRAINING_TIME))


def full_width_marks(text: str) -> str:
    """`text` with , ! : ; ? made full-width where a character of U+4E00..U+9FFF stands directly before or after."""
    return _MARK_BESIDE_CHINESE.sub(lambda match: FULL_WIDTH[match[0]], text)
