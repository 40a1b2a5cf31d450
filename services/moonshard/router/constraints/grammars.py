"""A request's constraint to the grammar that its worker follows, checked."""

import json
from collections.abc import Callable
from functools import lru_cache

from moonshard.errors import RequestError
from moonshard.grammar import GrammarEngine
from moonshard.router.constraints.ebnf import to_lark
from moonshard.router.constraints.lark import write_grammar
from moonshard.router.constraints.shapes import Json, Lark, Literal, OneOf, Regex, Shape, Speller
from moonshard.router.constraints.structural_tag import parse_structural_tag
from moonshard.router.requests import Grammar
from moonshard.sampling import Constraint, ConstraintKind
from moonshard.tokenizer import Tokenizer

THOUGHT_END = "</think>"

MAX_CHOICES = 1024

# Checked constraints and schemas that are kept: clients send the same tools with every turn.
NUM_CHECKED = 64
NUM_CHECKED_SCHEMAS = 1024


class Grammars:
    """One per cell. Checking a new constraint takes milliseconds, hundreds of them for a hundred tools; again, none."""

    def __init__(self, tokenizer: Tokenizer, engine: GrammarEngine) -> None:
        self._engine = engine
        self._speller = Speller(tokenizer.special_tokens)
        self._thought_end = tokenizer.special(THOUGHT_END)
        self._shapes: dict[ConstraintKind, Callable[[Constraint], Shape]] = {
            ConstraintKind.JSON_SCHEMA: lambda constraint: _json_schema(constraint.value),
            ConstraintKind.JSON_OBJECT: lambda constraint: Json({"type": "object"}),
            ConstraintKind.REGEX: lambda constraint: Regex(_filled(constraint)),
            ConstraintKind.EBNF: lambda constraint: Lark(to_lark(_filled(constraint))),
            ConstraintKind.CHOICE: lambda constraint: _choice(constraint.choices),
            ConstraintKind.STRUCTURAL_TAG: lambda constraint: parse_structural_tag(constraint.value, self._speller),
        }

        self._checked = lru_cache(NUM_CHECKED)(self._check)
        self._schema_problem = lru_cache(NUM_CHECKED_SCHEMAS)(self._find_schema_problem)

    def grammar_of(self, constraint: Constraint, prompt_opens_thought: bool) -> Grammar:
        """Where the prompt leaves a thought open the grammar waits for its end, unless from_first_token.

        Raises RequestError("constraint", ...) naming what cannot be served.
        """
        waits = prompt_opens_thought and not constraint.from_first_token
        return Grammar(self._checked(constraint), self._thought_end if waits else None)

    def schema_problem(self, schema: str) -> str | None:
        """Why a JSON schema cannot be served, or None."""
        return self._schema_problem(schema)

    def _check(self, constraint: Constraint) -> str:
        text = write_grammar(self._shapes[constraint.kind](constraint))
        self._engine.check(text)
        return text

    def _find_schema_problem(self, schema: str) -> str | None:
        try:
            self._engine.check(write_grammar(_json_schema(schema)))
        except RequestError as error:
            return str(error).removeprefix("constraint: ")
        return None


def _json_schema(value: str) -> Shape:
    try:
        schema = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RequestError("constraint", f"json_schema: not JSON: {error}") from None
    if schema is True:
        return Json({})
    if not isinstance(schema, dict):
        raise RequestError("constraint", f"json_schema: expected an object, got {value[:80]!r}")
    return Json(schema)


def _choice(choices: tuple[str, ...]) -> Shape:
    if not 1 <= len(choices) <= MAX_CHOICES:
        raise RequestError("constraint", f"choice: expected 1 to {MAX_CHOICES} values, got {len(choices)}")
    return OneOf(tuple(Literal(choice) for choice in choices))


def _filled(constraint: Constraint) -> str:
    if not constraint.value:
        raise RequestError("constraint", f"{constraint.kind.value}: must not be empty")
    return constraint.value
