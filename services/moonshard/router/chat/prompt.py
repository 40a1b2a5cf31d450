"""A conversation to the ids of its prompt, through the checkpoint's template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moonshard.errors import RequestError
from moonshard.router.chat.call_ids import num_calls, with_canonical_ids
from moonshard.router.chat.control_text import ControlText
from moonshard.router.chat.tool_text import declare_tools
from moonshard.router.chat.tools import Tool, check_tools
from moonshard.router.chat_messages import check_messages, sort_keys
from moonshard.router.template import ChatTemplate
from moonshard.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Conversation:
    """messages: in OpenAI's shape. thinking: whether the model is to think first."""

    messages: list[dict[str, Any]]
    tools: Sequence[Tool] = ()
    thinking: bool = True


@dataclass(frozen=True, slots=True)
class Prompt:
    """opens_thought: the reply begins inside a thought. num_calls: tool calls made in the conversation so far."""

    text: str
    token_ids: list[int]
    opens_thought: bool
    num_calls: int


class PromptWriter:
    """trust_callers: spellings of control tokens in callers' text become those tokens, as in the reference."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, trust_callers: bool = False) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._control_text = ControlText({} if trust_callers else tokenizer.special_tokens)
        self._thought = tokenizer.special("<think>")

    def write(self, conversation: Conversation) -> Prompt:
        """Raises RequestError naming the message and its field, or the tool and its field."""
        try:
            text, token_ids = self._write(conversation)
        except RecursionError:
            raise RequestError("messages", "objects in them or in tools are nested too deep") from None
        opens_thought = self._thought is not None and token_ids[-1:] == [self._thought]
        return Prompt(text, token_ids, opens_thought, num_calls(conversation.messages))

    def _write(self, conversation: Conversation) -> tuple[str, list[int]]:
        check_tools(conversation.tools)
        messages = with_canonical_ids(check_messages(conversation.messages))
        tools = [sort_keys(tool.as_dict()) for tool in conversation.tools]
        declaration = declare_tools(tools)
        shield = self._control_text.shield([messages, tools, declaration])
        rendered = self._template.render(
            shield.hide(messages), shield.hide(tools), conversation.thinking, tools_ts_str=shield.hide(declaration)
        )
        return shield.show(rendered), shield.encode(rendered, self._tokenizer)
