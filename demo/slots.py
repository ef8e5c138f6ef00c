"""What can be told and asked for: names, numbers, lists, favourites and more, in the wordings people use."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """One kind of thing in one language: {} is where it stands. Patterns are as in Pick.wording."""

    tell: tuple[str, ...]
    heard: str
    ask: tuple[str, ...]
    answer: str
    unknown: str


SLOTS: dict[tuple[str, str], Slot] = {
    ("name", "en"): Slot(
        (
            "(Hi|Hello|Hey|Hi there|Good morning|By the way|Well|)(, |! |. )(my name is|I am|I'm|call me|you can call me|my name's|I'm called) {}(.|!|)",
            "(My|my) name is {}(.|!|, remember it.| and I am new here.|. How are you?|, nice to meet you.)",
            "(I am|I'm|Call me|You can call me|People call me|My friends call me|Everybody calls me|The name is|This is) {}(.|!|)",
            "(Please |)(remember|note|keep in mind)( my name| that my name is| that I am called| I am)(:|) {}(.|)",
        ),
        "Nice to meet you, {}!",
        (
            "(What is|What's|Say|Tell me|Please tell me|Do you know|Do you remember|Can you say|Can you tell me|Do you still know|And) my name(?|.| again?| now?|)",
            "(What|How) (did I say|was|is) (my name|I called|I am called|my name again)(?|)",
            "(Who am I|Do you know who I am|Do you remember who I am|What am I called|What do people call me|Which name did I (give|tell) you)(?|)",
            "(Do you (still |)(remember|know)|Can you (say|tell me|recall)|Tell me) what (my name is|I am called|I'm called|my name was)(?|.|)",
        ),
        "Your name is {}.",
        "You have not told me your name yet.",
    ),
    ("name", "zh"): Slot(
        (
            "(你好，|嗨，|您好，|大家好，|顺便说一下，|)(我叫|我是|我的名字是|我的名字叫|叫我|你可以叫我|请叫我|大家都叫我|朋友们叫我){}(。|，很高兴认识你。|！|)",
            "(请|请你|)记住(我的名字|，我叫|，我的名字是|我叫)(：|){}(。|)",
        ),
        "很高兴认识你，{}！",
        (
            "(请问|请告诉我|你知道|你还记得|你记得|告诉我|说说|刚才我说|你说|)(我叫|我的名字叫|我的名字是|我是叫)(什么|什么名字|啥)(？|吗？|来着？|呢？|)",
            "(你|)(还|)(记得|知道|记住了)我(的名字|是谁|叫什么)(吗？|吗|么？)",
            "(请|)(说出|告诉我|说一下|重复)我的名字(。|)",
            "(我是谁|我叫啥|我刚才告诉你的名字是什么|我刚才说我叫什么)(？|)",
        ),
        "你叫{}。",
        "你还没有告诉我你的名字。",
    ),
    ("number", "en"): Slot(
        (
            "(Please |)(remember|note|memorise|memorize|keep|save|store|learn|write down)( the number| this number| the code| number|)(:|) {}(.| for me.| for later.|)",
            "(My|The) (number|code|lucky number|secret number|room number|phone number|password|pin|door code|ticket number) is {}(.|, remember it.|)",
            "(Don't forget|Do not forget|Keep in mind|Please keep in mind) (the number|the code|number|this number:|) {}(.|)",
        ),
        "I will remember the number {}.",
        (
            "(What|Which) (number|code|number it was|pin)( did I tell you| did I give you| did I say| should you remember| was it| did I ask you to remember)(?|)",
            "(What is|What was|What's|Tell me|Say|Give me|Repeat|Do you remember|Do you know|Can you tell me|Please repeat) (the|my) (number|code|lucky number|secret number|room number|phone number|password|pin|door code|ticket number)(?|.| again?| now?| please|)",
            "(Do you (still |)(remember|know)|Tell me|Can you recall) (what|which) (number|code) (I gave you|I told you|it was)(?|)",
        ),
        "The number is {}.",
        "You have not told me a number yet.",
    ),
    ("number", "zh"): Slot(
        (
            "(请|请你|帮我|麻烦|)(记住|记一下|记下|保存|别忘了|不要忘记)(数字|这个数字|这个号码|号码|密码|)(：|){}(。|)",
            "(我的|)(号码|密码|幸运数字|房间号|电话号码|秘密数字|门牌号|票号)是{}(。|，请记住。|，记一下。|)",
        ),
        "我会记住数字{}。",
        (
            "(请问|请告诉我|告诉我|你还记得|你记得|说一下|那么|)(我的|那个|刚才的|)(数字|号码|密码|幸运数字|房间号|电话号码|秘密数字|门牌号|票号)(是多少|是什么|是几|吗)(？|来着？|)",
            "(我|)(刚才|)(让你记住|告诉你|说|给你)的(数字|号码|密码)是(多少|什么|几|哪个)(？|)",
            "(请|)(再说一遍|重复|说出)(那个|我的|)(数字|号码)(。|)",
        ),
        "数字是{}。",
        "你还没有告诉我数字。",
    ),
    ("list", "en"): Slot(
        (
            "(Please |)(remember|note|keep|save|write down|memorise)( this list| these words| these things| the list| the words| these|)(:|) {}(.|)",
            "(My|The|This is my|Here is my) (list|shopping list|grocery list|word list)( is|)(:|) {}(.|)",
            "(I|We) (need to buy|have to buy|want to buy|must get|need|should buy|am going to buy) {}( today| tomorrow| at the shop| from the shop|)(.|)",
            "(On|In) my list (are|there are|is) {}(.|)",
        ),
        "I will remember: {}.",
        (
            "(What is|What's|What was|What are the things|Which things are|Which words are) (on|in) (my|the) (list|shopping list)(?| again?|)",
            "(Tell me|Repeat|Say|What is|Read|Show me|Do you remember|Can you repeat|Please repeat) (my|the) (list|shopping list|words|things)(?|.| again| please|)",
            "(What|Which things|Which words) (did I|do I|should I) (need to buy|want to buy|have to buy|buy|need|put on my list)(?|)",
            "(What|Which words|Which things) (did I tell you|should you remember|did I list|did I ask you to remember)( to remember|)(?|)",
        ),
        "Your list is: {}.",
        "You have not given me a list yet.",
    ),
    ("list", "zh"): Slot(
        (
            "(请|请你|帮我|麻烦|)(记住|记一下|记下|保存)(这个清单|这些词|这些东西|这几样东西|清单|)：{}(。|)",
            "(我的|这是我的|)(清单|购物清单|单子|列表)(是|上有|里有|：){}(。|)",
            "(今天|明天|待会儿|)我(要|想|得|需要)买{}(。|)",
        ),
        "我会记住：{}。",
        (
            "(请问|请告诉我|你还记得|)(我的|)(清单|购物清单|单子|列表)(上|里|)(有|都有|是|写了)(什么|哪些东西|哪些)(？|吗？|)",
            "我(今天|)(要|想|得|需要)买(什么|哪些东西|啥)(？|来着？|)",
            "(请|)(重复|再说一遍|说出|念)(我的|那个|)(清单|购物清单|列表)(。|)",
            "(我|)(刚才|)(让你记住|告诉你|说)(了|的|)(哪些词|哪些东西|什么东西|的清单是什么)(？|)",
        ),
        "你的清单是：{}。",
        "你还没有给我清单。",
    ),
}

# kind -> how it is called in English and in Chinese
_FAVOURITES = {
    "color": ("color", "颜色"),
    "food": ("food", "食物"),
    "animal": ("animal", "动物"),
    "fruit": ("fruit", "水果"),
    "drink": ("drink", "饮料"),
    "sport": ("sport", "运动"),
    "subject": ("subject", "科目"),
}
for _kind, (_en, _zh) in _FAVOURITES.items():
    SLOTS[_kind, "en"] = Slot(
        (
            f"(My|my) (favorite|favourite|best) {_en} is {{}}(.|!|, I love it.|)",
            f"(The|the) {_en} I (like best|like most|love most|prefer|love) is {{}}(.|)",
            f"{{}} is (my favorite|my favourite|the best|the nicest) {_en}(.|!| for me.|)",
            f"(I (like|love|prefer) {{}}(, it is| . It is|, that is) my (favorite|favourite) {_en}|Of all {_en}s I (like|love) {{}} (best|most))(.|)",
        ),
        f"I will remember that your favorite {_en} is {{}}.",
        (
            f"(What is|What's|What was|Tell me|Say|Do you know|Do you remember|Do you still know|Can you tell me) my (favorite|favourite) {_en}(?|.| again?|)",
            f"(What|Which) {_en} (do I|did I say I) (like|love|prefer)( best| most|)(?|)",
            f"(What|Which) {_en} is my (favorite|favourite|best)( one|)(?|)",
            f"(Do you (still |)(remember|know)|Tell me) (what|which) {_en} I (like|love|prefer)( best| most|)(?|)",
        ),
        f"Your favorite {_en} is {{}}.",
        f"You have not told me your favorite {_en} yet.",
    )
    SLOTS[_kind, "zh"] = Slot(
        (
            f"(我|)(最喜欢|最爱|喜欢|偏爱)的{_zh}(就|)是{{}}(。|！|)",
            f"{{}}是我(最喜欢|最爱|喜欢)的{_zh}(。|！|)",
            f"(说到{_zh}，|在所有{_zh}里，|{_zh}里面，)我(最喜欢|最爱|喜欢|偏爱){{}}(。|)",
        ),
        f"我记住了，你最喜欢的{_zh}是{{}}。",
        (
            f"(请问|请告诉我|你还记得|你知道|你记得|告诉我|)我(最喜欢|最爱|喜欢|偏爱)的{_zh}(是什么|是哪个|是啥|吗)(？|来着？|)",
            f"(请问|你知道|你还记得|)我(最喜欢|最爱|喜欢)(什么|哪种|哪个|啥){_zh}(？|吗？|)",
        ),
        f"你最喜欢的{_zh}是{{}}。",
        f"你还没有告诉我你最喜欢的{_zh}。",
    )
SLOTS |= {
    ("city", "en"): Slot(
        (
            "(I|I now|We) (live|am living|stay|grew up) in {}(.|!| now.|)",
            "(I am|I'm|I come|We are) from {}(.|!|)",
            "(My (city|home|home town|hometown) is|My home is in|I moved to|My family lives in) {}(.|)",
        ),
        "I will remember that you live in {}.",
        (
            "(Where (do I live|am I from|do I come from|is my home)|Do you (remember|know) where I (live|am from)|Tell me where I (live|am from))(?| now?|)",
            "(What|Which) (city|town|place) (do I live in|am I from|do I come from|is my home)(?|)",
            "(In which (city|town) do I live|What is my (city|home town|hometown))(?|)",
        ),
        "You live in {}.",
        "You have not told me where you live yet.",
    ),
    ("city", "zh"): Slot(
        (
            "(你好，|)我(现在|一直|)(住在|来自|家在|生活在|的家在){}(。|！|)",
            "我(是{}人|住的城市是{}|的家乡是{}|搬到了{})(。|)",
        ),
        "我记住了，你住在{}。",
        (
            "(请问|你知道|你还记得|告诉我|)(我|)(住在|来自|家在|生活在)(哪里|哪个城市|什么地方|什么城市|哪儿)(？|吗？|)",
            "(请问|)我(是哪里人|的家乡是哪里|家在哪里|住哪)(？|)",
        ),
        "你住在{}。",
        "你还没有告诉我你住在哪里。",
    ),
    ("job", "en"): Slot(
        (
            "(I am|I'm|I work as|I have a job as|By profession I am) a {}(.|!|)",
            "(My|my) (job|profession|work) is {}(.|)",
            "I (earn my living|make my money) as a {}(.|)",
        ),
        "I will remember that your job is {}.",
        (
            "(What is|What's|Tell me|Do you know|Do you remember|Can you tell me) my (job|profession|work|occupation)(?|.| again?|)",
            "What (do I do for (work|a living)|am I by profession|do I work as|is my line of work)(?|)",
            "(Do you (remember|know)|Tell me) what (I work as|my job is|I do for work)(?|.|)",
        ),
        "Your job is {}.",
        "You have not told me your job yet.",
    ),
    ("job", "zh"): Slot(
        (
            "我(是一名|的工作是|的职业是|是一个|是一位|的身份是|当){}(。|！|)",
            "(我做{}的工作|我从事的职业是{}|我在做{})(。|)",
        ),
        "我记住了，你的工作是{}。",
        (
            "(请问|你知道|你还记得|告诉我|)我的(工作|职业)是(什么|啥)(？|吗？|)",
            "(请问|你知道|你还记得|)我(是做什么|做什么工作|从事什么职业|是干什么)(的|)(？|吗？|)",
        ),
        "你的工作是{}。",
        "你还没有告诉我你的工作。",
    ),
    ("pet", "en"): Slot(
        (
            "(My|Our) (dog|cat|pet|rabbit|bird) is (called|named) {}(.|!|)",
            "(My|Our) (dog|cat|pet|rabbit|bird)'s name is {}(.|)",
            "I have a (dog|cat|pet|rabbit|bird) (called|named) {}(.|!|)",
            "(The name of my|I call my) (dog|cat|pet|rabbit|bird)( is|) {}(.|)",
        ),
        "{} is a nice name for a pet!",
        (
            "(What is|What's|Tell me|Do you know|Do you remember|Can you tell me) (the name of my pet|my pet's name)(?|.| again?|)",
            "(What|How) (is|did I call) my pet( called| named|)(?|)",
            "(Do you (remember|know)|Tell me) what my pet is (called|named)(?|.|)",
        ),
        "Your pet is called {}.",
        "You have not told me the name of your pet yet.",
    ),
    ("pet", "zh"): Slot(
        (
            "我(的|家的|)(狗|猫|宠物|兔子|小鸟)(叫|名叫|的名字是|名字叫){}(。|！|)",
            "我养了一只(狗|猫|兔子|小鸟|宠物)，(名叫|叫|它叫|名字是){}(。|)",
        ),
        "{}是个好名字！",
        (
            "(请问|你知道|你还记得|告诉我|)我的宠物(叫|的名字是|名字叫|的名字叫)(什么|什么名字|啥)(？|吗？|)",
            "(你|)(还|)(记得|知道)我的宠物(叫什么|的名字)(吗？|吗)",
        ),
        "你的宠物叫{}。",
        "你还没有告诉我你的宠物叫什么。",
    ),
    ("age", "en"): Slot(
        (
            "(I am|I'm|I turned|I will be|I just turned) {} years old(.|!| today.|)",
            "(My age is|I turned|I am|This year I am) {}(.| this year.| now.)",
        ),
        "I will remember that you are {} years old.",
        (
            "(How old am I|What is my age|What age am I|How many years old am I)(?| now?|)",
            "(Do you (remember|know)|Tell me|Can you say) (how old I am|my age)(?|.|)",
        ),
        "You are {} years old.",
        "You have not told me your age yet.",
    ),
    ("age", "zh"): Slot(
        ("(我|)(今年|已经|现在|刚满|)我{}岁(了|)(。|！|)", "我(今年|已经|现在|的年龄是|刚满|){}岁(了|)(。|)"),
        "我记住了，你{}岁。",
        (
            "(请问|你知道|你还记得|告诉我|)我(今年|现在|)(多大|几岁|多少岁)(了|)(？|吗？|)",
            "(请问|)我的年龄是(多少|多大|几岁)(？|)",
        ),
        "你{}岁。",
        "你还没有告诉我你的年龄。",
    ),
}
