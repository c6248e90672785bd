"""What is asked of a tokenizer, a template and a model. Fixed, so that two runs can be compared."""

import random
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeAlias

Conversation: TypeAlias = Sequence[Mapping[str, object]]

TEXTS: tuple[str, ...] = (
    "",
    " ",
    "Hello, world! It's 12345.67 o'clock, we'LL see\r\n\r\n  \t done  ",
    "你好，世界。今天天气怎么样？１２３",
    "機器學習（ML）是 AI 的一個分支, 見 https://例子.cn/路径?q=1",
    "def f(x: int) -> str:\n    return f'{x!r:>10}'  # 注释\n\n",
    "🚀😀👨\u200d👩\u200d👧 é e\u0301 ﬁ ñ \u200fالعربية עברית हिन्दी 한국어 ไทย",
    "Ελληνικά, Русский, Türkçe, Tiếng Việt, ქართული",
    "SELECT * FROM t WHERE a<=3 AND b!='x';",
    "\x00\x7f\ufffd\ue000   \n \n\t\t x",
    "ﷺ𠜎𠜱𝒳 – — … “引号” 「カギ」ひらがな 她说:\u3000“好的”。\n\n\n",
    "中" * 300,
    "a" * 300,
    " " * 100,
)

PROMPTS: tuple[str, ...] = (
    "What is the capital of France?",
    "用三句话介绍一下你自己。",
    "def fibonacci(n):",
    # longer than a chunk and several KV blocks, so that the cache paths have something to do
    "Summarise: A kettle stood on a stove. The water in it was cold at first, and nothing moved. Then small bubbles "
    "rose from the bottom, one after another, and broke at the surface; steam gathered under the lid, lifted it, let "
    "it fall, and lifted it again, so that it rattled. Somebody came in from the garden, turned off the flame, and "
    "poured the water over the tea leaves in the pot. 茶香很快充满了整个房间，大家都坐了下来。",
)

_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Look up the weather 查询天气",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CONVERSATIONS: tuple[tuple[Conversation, Sequence[Mapping[str, Any]] | None], ...] = (
    (({"role": "user", "content": "你好"},), None),
    (
        (
            {"role": "system", "content": "Answer in one sentence."},
            {"role": "user", "content": "Why is the sky blue?\n"},
            {"role": "assistant", "content": " Because air scatters blue light more.  "},
            {"role": "user", "content": "And at dusk? 🌆"},
        ),
        None,
    ),
    (({"role": "user", "content": "How is the weather in Paris?"},), (_TOOL,)),
)


def random_prompts(lengths: Sequence[int], *, vocab_size: int, avoid: Collection[int]) -> list[tuple[int, ...]]:
    """Return token ids for a model without a tokenizer, the same ones every time."""
    rng = random.Random(0)
    ids = [id for id in range(min(vocab_size, 100_000)) if id not in avoid]
    return [tuple(rng.choices(ids, k=length)) for length in lengths]
