"""The demo that speaks: its shape is K2.5's, it is small, and it answers the questions of the quick starts."""

import pytest

from moonshard.model.reference import Reference
from moonshard.router.chat.prompt import Conversation, PromptWriter
from moonshard.router.chat.tools import Tool
from moonshard.router.template import ChatTemplate
from moonshard.tokenizer import load_tokenizer
from moonshard.training.generate import answers
from moonshard_cluster.demo.trained_model import TRAINED

MAX_BYTES = 16_000_000
QUESTIONS = {
    "Who are you?": "moonshard",
    "How does a mixture of experts work?": "eight of 384",
    "Why is the square root of two irrational?": "lowest terms",
    "Wer bist du?": "Demomodell",
    "Qui es-tu ?": "modèle de démonstration",
    "Quem é você?": "modelo de demonstração",
    "Кто ты?": "демонстрационная модель",
    "Siapa kamu?": "model demo",
    "你是谁？": "演示模型",  # noqa: RUF001
}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "City name"}},
    "required": ["city"],
}
TOOL = Tool("get_weather", "Get the weather of a city", SCHEMA)


def asking(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


CONVERSATIONS = {
    **{question: Conversation(asking(question)) for question in QUESTIONS},
    "instant": Conversation(asking("What can you do?"), thinking=False),
    "tool": Conversation(asking("What's the weather in Beijing today? Use the tool to check."), [TOOL]),
}


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.load(TRAINED)


@pytest.fixture(scope="module")
def said(reference: Reference) -> dict[str, str]:
    """The likeliest answer to each conversation, all in one batch."""
    tokenizer = load_tokenizer(TRAINED)
    writer = PromptWriter(tokenizer, ChatTemplate.load(TRAINED))
    prompts = [writer.write(conversation).token_ids for conversation in CONVERSATIONS.values()]
    found = answers(reference.decoder, prompts, 130, reference.config.eos_token_ids)
    return dict(zip(CONVERSATIONS, map(tokenizer.decode, found), strict=True))


def test_its_shape_is_that_of_k2_5_and_its_files_are_small(reference: Reference) -> None:
    config = reference.config
    assert (config.n_routed_experts, config.num_experts_per_tok, config.n_shared_experts) == (384, 8, 1)
    assert (config.first_k_dense_replace, config.quantization_kind, config.rope is not None) == (1, "int4", True)
    assert sum(path.stat().st_size for path in TRAINED.iterdir()) <= MAX_BYTES


@pytest.mark.parametrize(("question", "part"), QUESTIONS.items())
def test_it_thinks_and_answers_in_the_language_of_the_question(said: dict[str, str], question: str, part: str) -> None:
    reasoning, closed, content = said[question].partition("</think>")
    assert closed
    assert reasoning.startswith("The user asks")
    assert part in content


def test_without_thinking_it_answers_at_once(said: dict[str, str]) -> None:
    assert said["instant"].startswith("I can say who I am")


def test_it_calls_the_tool_that_it_is_given(said: dict[str, str]) -> None:
    assert said["tool"].endswith(
        "</think><|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "Beijing"}<|tool_call_end|><|tool_calls_section_end|>'
    )
