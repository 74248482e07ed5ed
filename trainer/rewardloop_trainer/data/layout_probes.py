"""The dialogues on which a base's text layout is compared with its authors'. Each ends with an answer."""

from __future__ import annotations

import json

from rewardloop.formats.messages import TOOLS, ToolCall, Turn

_LONG = "A paragraph of several words, repeated until it is long. " * 60
_CODE = "def f(x):\n\tif x:\n        return {'a': [1, 2]}\n\n\n    # done\n"
_UNICODE = "Grüße, 日本語 \u00a0🙂 e\u0301 \u200dשלום"
_DIALOGUES: dict[str, tuple[tuple[str, str], ...]] = {
    "single turn": (("user", "Why is the sky blue?"), ("assistant", "Light scatters.")),
    "several turns": (
        ("user", "Hello."),
        ("assistant", "Good morning!"),
        ("user", "And now?"),
        ("assistant", "It is noon."),
    ),
    "system": (("system", "Be brief."), ("user", "Why?"), ("assistant", "Because.")),
    "system and several turns": (
        ("system", "Be brief."),
        ("user", "Why?"),
        ("assistant", "Because."),
        ("user", "Really?"),
        ("assistant", "Yes."),
    ),
    "empty system": (("system", ""), ("user", "Why?"), ("assistant", "Because.")),
    "outer white space": (("user", "  Why? \n"), ("assistant", " Because.  \n")),
    "newlines first": (("user", "\n\nWhy?"), ("assistant", "\nBecause.")),
    "unicode": (("user", _UNICODE), ("assistant", _UNICODE[::-1])),
    "code": (("user", f"Explain:\n{_CODE}"), ("assistant", f"```python\n{_CODE}```")),
    "developer": (("developer", "Be brief."), ("user", "Why?"), ("assistant", "Because.")),
    "system later": (
        ("user", "Hello."),
        ("assistant", "Hi."),
        ("system", "Be brief."),
        ("user", "Why?"),
        ("assistant", "Because."),
    ),
    "two system turns": (("system", "Be brief."), ("system", "Be kind."), ("user", "Why?"), ("assistant", "Because.")),
    "reasoning": (
        ("user", "2 + 2?"),
        ("assistant", "<think>\nIt is easy.\n</think>\n\nFour."),
        ("user", "And 3 + 3?"),
        ("assistant", "<think>\nEasy too.\n</think>\n\nSix."),
    ),
    "many turns": tuple((role, f"Turn {i}.") for i in range(6) for role in ("user", "assistant")),
    "two tools": (("user", "2 + 2?"), ("assistant", "I ask."), ("tool", "4"), ("tool", "four"), ("assistant", "Four.")),
    "tool": (("user", "2 + 2?"), ("assistant", "I ask."), ("tool", "4"), ("assistant", "Four.")),
    "assistant first": (("assistant", "Hello."), ("user", "Why?"), ("assistant", "Because.")),
    "two user turns": (("user", "Hello."), ("user", "Why?"), ("assistant", "Because.")),
    "system last": (("user", "Why?"), ("system", "Be brief."), ("assistant", "Because.")),
    "long": (("user", _LONG), ("assistant", _LONG)),
}

_FUNCTIONS = (
    {
        "name": "temperature_of",
        "description": 'The temperature at a place, in "degrees".\nAsk once.',
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "City, e.g. Zürich"},
                "unit": {"type": "string", "enum": ["celsius", "kelvin"]},
                "days": {"type": "integer", "minimum": 1},
            },
            "required": ["place"],
        },
    },
    {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}, "required": []}},
)
_SCHEMAS = [{"type": "function", "function": function} for function in _FUNCTIONS]
_TOOLS = Turn(TOOLS, json.dumps(_SCHEMAS, ensure_ascii=False))
_CALL = ToolCall("temperature_of", '{"place": "Zürich", "days": 2, "unit": "celsius", "exact": 1.5}', "call00001")
_ASKED = Turn("user", "How warm is it in Zürich?")
_CALLED = Turn("assistant", "", (_CALL,))
_TOLD = Turn("tool", '{"celsius": 21}', name="temperature_of", tool_call_id="call00001")
_ANSWER = Turn("assistant", "It is 21 degrees.")

# For templates that read tools, calls of them, or names.
TOOL_PROBES: dict[str, tuple[Turn, ...]] = {
    "tools": (_TOOLS, _ASKED, _ANSWER),
    "tools and system": (_TOOLS, Turn("system", "Be brief."), _ASKED, _ANSWER),
    "tool call": (_TOOLS, _ASKED, _CALLED, _TOLD, _ANSWER),
    "tool call with text": (_TOOLS, _ASKED, Turn("assistant", "I ask.", (_CALL,)), _TOLD, _ANSWER),
    "tool call without tools": (_ASKED, _CALLED, _TOLD, _ANSWER),
    "two tool calls": (
        _TOOLS,
        _ASKED,
        Turn("assistant", "", (_CALL, ToolCall("now", "{}", "call00002"))),
        _TOLD,
        Turn("tool", "noon", name="now", tool_call_id="call00002"),
        _ANSWER,
    ),
    "tool call and more turns": (_TOOLS, _ASKED, _CALLED, _TOLD, _ANSWER, Turn("user", "Thanks."), _ANSWER),
    "name": (Turn("user", "Hello.", name="anna"), Turn("assistant", "Hi.")),
}
PROBES = {name: tuple(Turn(role, content) for role, content in said) for name, said in _DIALOGUES.items()}
