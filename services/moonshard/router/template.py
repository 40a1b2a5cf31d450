"""Chat messages to the text of a prompt, through the checkpoint's own template.

Source: kimi-k2.5.md section 5.2. The environment is what published templates expect: sandboxed, loop controls,
trimmed blocks, and a `tojson` that takes separators and leaves non-ASCII characters alone.
"""

import json
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from moonshard.errors import CheckpointError, RequestError
from moonshard.router.chat_messages import check_messages, sort_keys
from moonshard.tokenizer.files import read_bytes, read_json

# What an expression inside a template can raise; everything else is a bug of ours.
_TEMPLATE_FAILURES = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: str, origin: str = "chat template") -> None:
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise CheckpointError(f"{origin}: line {error.lineno}: {error.message}") from None

    @classmethod
    def load(cls, checkpoint_dir: Path) -> "ChatTemplate":
        """From chat_template.jinja, else chat_template in tokenizer_config.json. Raises CheckpointError."""
        return cls(*read_template(checkpoint_dir))

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        thinking: bool = True,
        add_generation_prompt: bool = True,
        tools_ts_str: str | None = None,
    ) -> str:
        """The prompt's text. tools_ts_str: the tools once more, as TypeScript text, for templates that ask for it.

        Raises RequestError naming messages[i].field, or the template's own complaint.
        """
        values = {
            "messages": check_messages(messages),
            "tools": sort_keys(tools),
            "tools_ts_str": tools_ts_str,
            "thinking": thinking,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._template.render(values)
        except _TEMPLATE_FAILURES as error:
            raise RequestError("messages", f"the chat template refuses them: {error}") from error


def read_template(checkpoint_dir: Path) -> tuple[str, str]:
    """The template's source and where it stands. Raises CheckpointError."""
    path = checkpoint_dir / "chat_template.jinja"
    if not path.is_file():
        return _template_in_config(checkpoint_dir / "tokenizer_config.json")
    try:
        return read_bytes(path).decode(), str(path)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8: {error}") from None


def _template_in_config(path: Path) -> tuple[str, str]:
    template = read_json(path).get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if not isinstance(template, str):
        raise CheckpointError(
            f"{path}: expected chat_template, here or as chat_template.jinja beside it; found neither"
        )
    return template, f"{path}: chat_template"


def _environment() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _to_json(
    value: Any, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
