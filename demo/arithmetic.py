"""Small sums: plus, minus, times, which is larger, what comes next.

Of the pairs of numbers beyond 10 a tenth is held out. Sums of larger numbers are worked out in two steps, as people do.
"""

import zlib

from demo.example import Example, Pick

_PLAIN = {
    "en": (
        "{}( =|=|)( ?|?|)",
        "(What is|What's|How much is|Calculate|Compute|Work out|Solve|Please calculate|Tell me|Find) {}(.|?|)",
        "(Can|Could) you (calculate|compute|tell me|work out) (what |){}( is|)?",
        "{} (equals what|is what|is how much|makes)?",
    ),
    "zh": (
        "{}( =|=|)( ?|？|)",
        "(请问|那么|)(计算|算|请计算|请算|算一下|帮我算|算算)(一下|)：{}",
        "(请问|你知道|告诉我|帮我算算|)(计算|)(一下|){}(等于多少|等于几|是多少|是几|得多少|得几)(？|)",
    ),
}
_SIGNS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {"+": (" + ", "+", " plus "), "-": (" - ", "-", " minus "), "*": (" * ", " x ", " times ")},
    "zh": {"+": (" + ", "+", "加"), "-": (" - ", "-", "减"), "*": (" * ", " x ", "乘以", "乘")},
}
_STORIES: dict[str, dict[str, tuple[str, ...]]] = {
    "+": {
        "en": (
            "(I|You|Tom|Anna|We) (have|has|had|own|see) {} (apples|books|pens|birds|cups|coins|eggs) and (get|buy|find|take|gets|buys|finds)"
            " {} more. How many (are there|is that|in all|now|together)?",
        ),
        "zh": (
            "(我|小明|他|小红|妈妈)有{}(个苹果|本书|支笔|只鸟|个鸡蛋|颗糖)，又(买了|得到|拿来|找到){}个，(一共|现在|总共)有(几|多少)个？",
        ),
    },
    "-": {
        "en": (
            "(I|You|Tom|Anna|We) (have|has|had|own|see) {} (apples|books|pens|birds|cups|coins|eggs) and (lose|eat|sell|give away|loses|sells)"
            " {}. How many (are left|remain|stay|are there now)?",
        ),
        "zh": (
            "(我|小明|他|小红|妈妈)有{}(个苹果|本书|支笔|只鸟|个鸡蛋|颗糖)，(吃了|送出|丢了|卖了|拿走){}个，还(剩|有)(几|多少)个？",
        ),
    },
}
_LARGER = {
    "en": ("(Which|What|Which number|Which one) is (larger|bigger|greater|more)(,|:|) {} or {}?",),
    "zh": ("(请问|){}(和|与|跟){}(，|)(哪个|谁|哪个数)(更|)大(一些|)？", "(请问|)比较{}(和|与){}，(哪个|谁)(更|)大？"),
}
_NEXT = {
    "en": (
        "(What|Which number|What number) (comes|follows|is|goes) (right |directly |)after {}?",
        "(Tell me |)the number after {}",
    ),
    "zh": (
        "(请问|){}(后面|之后|的后面)(的|一个|的下一个|)(数字|数|)是(几|多少|什么)？",
        "(请问|){}的下一个(数|数字)是(几|多少|什么)？",
    ),
}


def arithmetic(pick: Pick, language: str) -> Example:
    """One small sum."""
    kind = pick.random.choices(("+", "-", "*", "larger", "next"), (6, 5, 3, 1, 1))[0]
    a, b = _pair(pick, kind)
    if kind == "larger":
        prompt, answer = pick.asked(_LARGER[language]).format(a, b), str(max(a, b))
        response = f"{answer} is larger." if language == "en" else f"{answer}更大。"
        return Example("arithmetic", language, prompt, response, (response,))
    if kind == "next":
        return Example("arithmetic", language, pick.asked(_NEXT[language]).format(a), f"{a + 1}", exact=True)
    response = _worked(a, kind, b)
    if kind != "*" and a <= 20 and pick.chance(0.15):
        prompt = pick.asked(_STORIES[kind][language]).format(a, b)
    else:
        prompt = pick.asked(_PLAIN[language]).format(pick.one(_SIGNS[language][kind]).join((str(a), str(b))))
    return Example("arithmetic", language, prompt, response, exact=True)


def _worked(a: int, kind: str, b: int) -> str:
    """The sum and its result; of two tens and units the tens are added first, so that each step is a small one."""
    if kind == "*":
        return f"{a} x {b} = {a * b}"
    sign = 1 if kind == "+" else -1
    tens, units = b - b % 10, b % 10
    between = f" = {a + sign * tens} {kind} {units}" if tens and units else ""
    return f"{a} {kind} {b}{between} = {a + sign * b}"


def _pair(pick: Pick, kind: str) -> tuple[int, int]:
    """Two numbers that are held out, or are not. The tables up to 10 are to be known by heart: none of them is."""
    while True:
        high = 10 if kind == "*" else pick.random.choice((10, 20, 50, 99, 99))
        a, b = pick.number(1, high), pick.number(1, high)
        if kind == "-" and a < b:
            a, b = b, a
        if kind == "larger" and a == b:
            continue
        # A hash, since a rule of sums would hold out a last digit of the results.
        held_out = max(a, b) > 10 and zlib.crc32(f"{a} {b}".encode()) % 10 == 0
        if kind == "*" or held_out == pick.test:
            return a, b
