"""The mixture of all generators, and dialogues as tokens with what each token counts.

Everything follows from a seed: the n-th sample of a seed is always the same.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moonshard.router.chat.tool_text import declare_tools
from moonshard.router.chat_messages import sort_keys
from moonshard.router.template import ChatTemplate
from moonshard.tokenizer import Tokenizer
from moonshard.training.data.dialogue import Dialogue
from moonshard.training.data.json_answers import json_answer
from moonshard.training.data.phrases import LANGUAGES, PhraseBook, phrase_book
from moonshard.training.data.sums import arithmetic, compare
from moonshard.training.data.talk import talk
from moonshard.training.data.tool_use import tool_use

_TASKS = {talk: 0.2, arithmetic: 0.16, compare: 0.04, json_answer: 0.1, tool_use: 0.5}
_ENGLISH = 0.3
_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are Kimi, an AI assistant created by Moonshot AI.",
    "You are a small demo model.",
    "Answer briefly.",
)
_SYSTEM, _JSON_TOOLS = 0.15, 0.3
USER_WEIGHT = 0.1


def sample(rng: random.Random, held_out: bool = False, book: Callable[[str], PhraseBook] = phrase_book) -> Dialogue:
    """A dialogue that is held out from training, or one that is not. book: of a language, what is asked in it."""
    while True:
        code = "en" if rng.random() < _ENGLISH else rng.choice(LANGUAGES[1:])
        make = rng.choices(list(_TASKS), list(_TASKS.values()))[0]
        dialogue = make(book(code), rng)
        if dialogue.is_held_out == held_out:
            return dialogue


@dataclass(frozen=True)
class Encoded:
    """`weights` says what predicting each token counts: answers 1, questions a little, declarations nothing."""

    tokens: list[int]
    weights: list[float]


class Encoder:
    """Dialogues through a checkpoint's template and tokenizer."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer, self._template = tokenizer, template
        names = ("<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|im_end|>", "<think>", "</think>")
        found = [tokenizer.special(name) for name in names]
        self._user, self._assistant, self._middle, self._end, self._think, self._end_think = found

    def text(self, dialogue: Dialogue, rng: random.Random) -> tuple[str, str]:
        """(what the model is given, what it shall answer). The template would drop the last answer's reasoning."""
        messages = self._with_system(dialogue.messages[:-1], rng)
        prompt = self._declared(dialogue, rng) + self._template.render(messages, None, dialogue.thinking)
        return prompt, answer_text(dialogue)

    def prompt(self, dialogue: Dialogue, rng: random.Random) -> list[int]:
        """What the model is given, as tokens."""
        return self._tokenizer.encode(self.text(dialogue, rng)[0], allow_special=True)

    def encode(self, dialogue: Dialogue, rng: random.Random) -> Encoded:
        tokens = self._tokenizer.encode("".join(self.text(dialogue, rng)), allow_special=True)
        return Encoded(tokens, self._weights(tokens))

    def decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens)

    def _weights(self, tokens: list[int]) -> list[float]:
        weights, weight, speaker = [], 0.0, None
        for place, token in enumerate(tokens):
            if token in (self._user, self._assistant):
                speaker = token
            weights.append(weight if not self._is_given(tokens, place) else 0.0)
            if token == self._middle:
                weight = {self._user: USER_WEIGHT, self._assistant: 1.0}.get(speaker, 0.0)
            elif token == self._end:
                weight, speaker = 0.0, None
        return weights

    def _is_given(self, tokens: list[int], place: int) -> bool:
        """The opening of reasoning, and its end where there is none: the prompt holds both."""
        after_think = place > 0 and tokens[place - 1] == self._think
        return tokens[place] == self._think or (after_think and tokens[place] == self._end_think)

    def _with_system(self, messages: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
        if rng.random() >= _SYSTEM:
            return messages
        return [{"role": "system", "content": rng.choice(_SYSTEM_PROMPTS)}, *messages]

    def _declared(self, dialogue: Dialogue, rng: random.Random) -> str:
        """Mostly TypeScript, as the router declares tools; else JSON, as servers do that know no better."""
        if not dialogue.tools:
            return ""
        text = None if rng.random() < _JSON_TOOLS else declare_tools(sort_keys(dialogue.tools))
        if text is None:
            sort = rng.random() < 0.5
            text = json.dumps(dialogue.tools, ensure_ascii=False, separators=(",", ":"), sort_keys=sort)
        return f"<|im_system|>tool_declare<|im_middle|>{text}<|im_end|>"


def answer_text(dialogue: Dialogue) -> str:
    """The last message after the generation prompt, to the end of its turn."""
    last = dialogue.messages[-1]
    reasoning = f"{last['reasoning_content']}</think>" if dialogue.thinking else ""
    return f"{reasoning}{last['content']}{_calls(last.get('tool_calls', []))}<|im_end|>"


def _calls(calls: list[dict[str, Any]]) -> str:
    if not calls:
        return ""
    texts = (
        f"<|tool_call_begin|>{call['id']}<|tool_call_argument_begin|>{call['function']['arguments']}<|tool_call_end|>"
        for call in calls
    )
    return f"<|tool_calls_section_begin|>{''.join(texts)}<|tool_calls_section_end|>"
