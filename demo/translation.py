"""Words and short sentences, English to Chinese and back."""

from demo.example import Example, Pick, table

_LEXICON = table("lexicon.txt")
_PHRASES = table("phrases.txt")

# language of the question -> target language -> wordings
_ASK: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "zh": (
            "(Please |Can you |Could you |)(translate|put|turn) {} (into|to|in) Chinese(.|?|)",
            "(Please |)translate( this|) (into|to) Chinese: {}",
            "(What is|What's|How do you say|How do I say|How to say|Say|Tell me|What do you call) {} in Chinese(?|.|)",
            "{}( in| into|,) Chinese(?|.|)",
            "(What is|Tell me|Give me|I need|) (the |)Chinese( word| translation|) (for|of) {}(?|.|)",
        ),
        "en": (
            "(Please |Can you |Could you |)(translate|put|turn) {} (into|to|in) English(.|?|)",
            "(Please |)translate( this|) (into|to) English: {}",
            "(What is|What's|How do you say|How do I say|How to say|Say|Tell me|What do you call) {} in English(?|.|)",
            "{}( in| into|,) English(?|.|)",
            "(What is|Tell me|Give me|I need|) (the |)English( word| translation| meaning|) (for|of) {}(?|.|)",
            "(What does|What would) {} mean( in English|)(?|)",
        ),
    },
    "zh": {
        "en": (
            "(请问|){}(用|的|)(英语|英文)(怎么说|是什么|怎么写|怎么讲|单词是什么)(？|)",
            "(请|请你|帮我|麻烦|)(把|将){}(翻译|译|翻)成(英语|英文)(。|吧|)",
            "(请|)(翻译|翻|译)成(英语|英文)：{}",
            "{}(翻译|翻|译)成(英语|英文)(是什么|怎么说|)(？|)",
        ),
        "zh": (
            "(请问|){}(是|有|)(什么|啥)(意思|含义)(？|)",
            "(请问|)(英语|单词|英文|英语单词|){}(用|的|在|)(中文|汉语)(怎么说|是什么|意思是什么|里是什么意思)(？|)",
            "(请|请你|帮我|麻烦|)(把|将){}(翻译|译|翻)成(中文|汉语)(。|吧|)",
            "(请|)(翻译|翻|译)成(中文|汉语)：{}",
            "{}(翻译|翻|译)成(中文|汉语)(是什么|怎么说|)(？|)",
        ),
    },
}
_QUOTES = ("{}", "{}", '"{}"', "'{}'")


def translation(pick: Pick, language: str) -> Example:
    """A word, or now and then a sentence, into the other language."""
    phrase = pick.chance(0.2)
    english, chinese = pick.one(_PHRASES)[:2] if phrase else pick.one(_LEXICON)[:2]
    target = pick.one(("en", "zh"))
    source, answer = (english, chinese) if target == "zh" else (chinese, english)
    wording = pick.asked(_ASK[language][target])
    if source[-1] in ".?!。？！" and not wording.endswith("{}"):
        source = source[:-1] if pick.chance(0.7) else source
    prompt = wording.format(pick.one(_QUOTES).format(source))
    return Example("translation", language, prompt, answer, (answer.rstrip(".?!。？！"),))
