"""Repeating and reordering: text is copied, lists are turned round, numbers sorted, a word is picked out."""

from collections.abc import Iterable

from demo.example import Example, Pick, table
from demo.memory import common_character, name

_LEXICON = table("lexicon.txt")
_PHRASES = table("phrases.txt")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

_REPEAT = {
    "en": (
        "(Please |Can you |Could you |Now |Just |)(repeat|say|copy|write|echo|type|output)( exactly| after me|)"
        "( this| the following| these words| this text| this sentence| the words| my words|)( again| word for word| back|)(:|?|) {}",
        '(Please |Can you |)(repeat|say|write|copy) "{}"(.|?| again.| for me.| please.|)',
        "(Please |Can you |)(repeat|say|write|copy) '{}'(.|?| again.| for me.| please.|)",
        "(Repeat|Say|Copy|Echo|Write)( after me| this| exactly| the following|): {}",
        "(Repeat after me|Say after me|After me|Copy|Echo|Repeat): {}",
        "I want you to (repeat|say|copy|write)( this| the following|): {}",
    ),
    "zh": (
        "(请|请你|现在|帮我|你能|麻烦|)(重复|复述|照抄|复制|跟我读|跟我说|原样输出|说一遍|写一遍|念)(一下|一遍|)"
        "(这句话|下面的话|下面的内容|以下内容|这些词|这段文字|我的话|)：{}",
        "(请|请你|)(重复|说|复述|跟我说|照抄)(一遍|)“{}”(。|吧|)",
        "(请|)把(这句话|下面的话|下面的内容|这段话|以下文字)(重复一遍|再说一遍|原样输出|复述一遍|照抄下来)：{}",
        "(请|)一字不差地(重复|写出|复述)：{}",
    ),
}
_REVERSE = {
    "en": (
        "(Please |Can you |)(reverse|turn around|flip|invert)( this list| the list| the order of| the order of these words"
        "| these words| the words| the following list| the order|)(:|) {}",
        "(Please |)(say|write|list|put|give|repeat) (these words |these |this list |the words |the list |)(backwards|in reverse order"
        "|in reverse|from last to first|the other way round): {}",
    ),
    "zh": (
        "(请|请你|帮我|)把(这个列表|这些词|下面的词|顺序|以下词语|它们)(倒过来|反过来|颠倒过来|倒序排列|反转)(写|说|排|)：{}",
        "(请|)(倒序|反向|倒着|反过来|从后往前)(输出|写|说|排列|念|)(这些词|下面的词|)：{}",
    ),
}
_SORT = {
    "en": (
        "(Please |Can you |)(sort|order|arrange)( these numbers| the numbers| the following numbers| this list|)"
        "( from small to large| in ascending order| from smallest to largest| by size|)(:|) {}",
        "(Please |)put (these numbers|the numbers|them|these) in( ascending|) order(, smallest first|)(:|) {}",
    ),
    "zh": (
        "(请|请你|帮我|)(把|给|将)(这些数字|下面的数字|这几个数|以下数字)(从小到大|按大小|按升序|)(排序|排列|排一下|排好)：{}",
        "(请|)(从小到大|按升序|)(排序|排列|排一排)：{}",
    ),
}
_ENDS = {
    ("first", "en"): (
        "(What|Which word) (is|comes) (the |)first( word|)( in this list| here| of|)(:|?) {}",
        "(The |)(first|First) word( of this list| in the list|): {}",
    ),
    ("last", "en"): (
        "(What|Which word) (is|comes) (the |)last( word|)( in this list| here| of|)(:|?) {}",
        "(The |)(last|Last) word( of this list| in the list|): {}",
    ),
    ("count", "en"): (
        "How many words( are there| are here| are in this list| do you see|)(:|?) {}",
        "(Please |)(count|Count) (the|these) words( in this list|): {}",
    ),
    ("first", "zh"): ("(请问|)(这个列表|下面|这里|这些词|)(的|)第一个(词|词语|)(是什么|是哪个|)(：|？){}",),
    ("last", "zh"): ("(请问|)(这个列表|下面|这里|这些词|)(的|)最后一个(词|词语|)(是什么|是哪个|)(：|？){}",),
    ("count", "zh"): ("(请问|数一数|数数|)(这个列表|下面|这里|一共|)(有|有多少|有几)个词(语|)(：|？){}",),
}


def repeat(pick: Pick, language: str) -> Example:
    """Text said again to the letter."""
    text = _text(pick, language)
    return Example("copy", language, pick.asked(_REPEAT[language]).format(text), text, exact=True)


def reorder(pick: Pick, language: str) -> Example:
    """A list turned round, sorted, counted, or one end of it."""
    kind = pick.one(("reverse", "reverse", "sort", "sort", "first", "last", "count"))
    if kind == "sort":
        numbers = pick.random.sample(range(1, 100 if pick.chance(0.6) else 21), pick.number(3, 4))
        shown, answer = (_list(map(str, order), language) for order in (numbers, sorted(numbers)))
        return Example("reorder", language, pick.asked(_SORT[language]).format(shown), answer, exact=True)
    words = _words(pick, language, pick.number(2, 5) if kind != "reverse" else pick.number(2, 4))
    shown = _list(words, language)
    if kind == "reverse":
        answer = _list(words[::-1], language)
        return Example("reorder", language, pick.asked(_REVERSE[language]).format(shown), answer, exact=True)
    prompt = pick.asked(_ENDS[kind, language]).format(shown)
    if kind == "count":
        answer = f"{len(words)} words." if language == "en" else f"{len(words)}个词。"
        return Example("reorder", language, prompt, answer, (str(len(words)),))
    return Example("reorder", language, prompt, words[0 if kind == "first" else -1], exact=True)


def _list(words: Iterable[str], language: str) -> str:
    return ("、" if language == "zh" else ", ").join(words)


def _words(pick: Pick, language: str, count: int) -> list[str]:
    """Different words; held-out lists are new combinations."""
    column = int(language == "zh")
    return [row[column] for row in pick.random.sample(_LEXICON, count)]


def _text(pick: Pick, language: str) -> str:
    """A sentence, words, a name, numbers, letters or characters in no order."""
    column, kind = int(language == "zh"), pick.number(0, 7)
    if kind == 0:
        return pick.one(_PHRASES)[column]
    if kind == 1:
        return str(pick.number(10, 10 ** pick.number(2, 7)))
    if kind == 2:
        return name(pick, language)
    if kind == 3 and language == "en":
        return " ".join("".join(pick.one(_LETTERS) for _ in range(pick.number(1, 5))) for _ in range(pick.number(1, 3)))
    if kind == 3:
        return "".join(common_character(pick) for _ in range(pick.number(2, 5)))
    if kind == 4:
        return _list(_words(pick, language, pick.number(2, 5)), language)
    if kind == 5:
        return f"{pick.one(_PHRASES)[column]}{'' if column else ' '}{pick.one(_PHRASES)[column]}"
    words = _words(pick, language, pick.number(1, 6))
    text = (" " if language == "en" else "").join(words)
    return text[:1].upper() + text[1:] + "." if language == "en" and pick.chance(0.3) else text
