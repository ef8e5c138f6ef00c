"""What the page says, in the two languages it speaks. Gradio brings its own words for its buttons."""

from collections.abc import Mapping

Words = Mapping[str, str]

ENGLISH: Words = {
    "new_chat": "New chat",
    "settings": "Settings",
    "max_length": "Maximum length",
    "max_length_info": "tokens of prompt and answer",
    "top_p": "Top P",
    "top_p_info": "lower keeps to the likelier words",
    "temperature": "Temperature",
    "temperature_info": "0 always takes the likeliest word",
    "ask": "Type a message, in English or Chinese",
    "welcome": "Ask something, or begin with an example.",
    "model": "{name} · {context:,} tokens of context · answers can be wrong",
    "figures": "{rate:.1f} tokens/s · {answer:,} tokens · first word after {wait:.1f} s · prompt of {prompt:,} tokens",
    "length": "cut at the maximum length",
    "dropped": "the oldest {dropped:,} rounds were left out, the conversation is too long",
    "no_answer": "No answer: {reason}.",
    "later": "Not now: {reason}.",
}
CHINESE: Words = {
    "new_chat": "新对话",
    "settings": "设置",
    "max_length": "最大长度",
    "max_length_info": "提示与回答合计的 token 数",
    "top_p": "Top P",
    "top_p_info": "越低，用词越保守",
    "temperature": "温度",
    "temperature_info": "为 0 时总取最可能的词",
    "ask": "请输入，中英文均可",
    "welcome": "请提问，或从一个例子开始。",
    "model": "{name} · 上下文 {context:,} 个 token · 回答可能有误",
    "figures": "{rate:.1f} token/s · {answer:,} 个 token · {wait:.1f} 秒后出现第一个词 · 提示 {prompt:,} 个 token",
    "length": "因达到最大长度而结束",
    "dropped": "对话过长，未读最早的 {dropped:,} 轮",
    "no_answer": "没有回答：{reason}",
    "later": "请稍候：{reason}",
}


def preferred(accept_language: str) -> Words:
    """The words for a browser with this Accept-Language, which names its first choice first."""
    return CHINESE if accept_language.strip().lower().startswith("zh") else ENGLISH
