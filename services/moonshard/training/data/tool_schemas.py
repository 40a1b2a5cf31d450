"""Tools with varied names, parameters and descriptions, and others that are declared beside them."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]


@dataclass(frozen=True)
class Parameter:
    """`slot` is the value's name in the phrase books; `names` what a schema may call it."""

    slot: str
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    is_number: bool = False


@dataclass(frozen=True)
class Family:
    """Tools that do the same under many names: a verb and a noun."""

    verbs: tuple[str, ...]
    nouns: tuple[str, ...]
    descriptions: tuple[str, ...]
    parameters: tuple[Parameter, ...]


_CITY = Parameter("city", ("city", "location", "place", "town"), ("City name", "Name of the city", "Where"))
FAMILIES: Mapping[str, Family] = {
    "weather": Family(
        ("get", "check", "fetch", "find"),
        ("weather", "forecast", "current_weather", "weather_report"),
        ("Get the weather of a city", "Current weather", "Weather at a place"),
        (_CITY,),
    ),
    "time": Family(
        ("get", "check", "fetch", "find"),
        ("time", "local_time", "current_time", "clock"),
        ("Get the local time of a city", "Current time", "Time at a place"),
        (_CITY,),
    ),
    "currency": Family(
        ("convert", "exchange", "change"),
        ("currency", "money", "amount"),
        ("Convert money", "Exchange between currencies"),
        (
            Parameter("n", ("amount", "value", "sum"), ("How much", "The amount"), is_number=True),
            Parameter("from", ("from", "source", "from_currency"), ("Currency to convert from", "Source currency")),
            Parameter("to", ("to", "target", "to_currency"), ("Currency to convert to", "Target currency")),
        ),
    ),
    "reminder": Family(
        ("set", "create", "add"),
        ("reminder", "alarm", "note"),
        ("Set a reminder", "Remind the user of something"),
        (
            Parameter("clock", ("time", "at", "when"), ("Time of day", "When to remind")),
            Parameter("task", ("task", "text", "message"), ("What to do", "What to remind of")),
        ),
    ),
    "search": Family(
        ("search", "query", "find"),
        ("web", "internet", "pages"),
        ("Search the web", "Find pages"),
        (Parameter("topic", ("query", "q", "keywords"), ("What to search for", "Search words")),),
    ),
}
_OTHERS: tuple[Schema, ...] = (
    {"name": "send_email", "description": "Send an email", "properties": {"address": "string", "body": "string"}},
    {"name": "play_music", "description": "Play a song", "properties": {"song": "string"}},
    {"name": "book_table", "description": "Book a table", "properties": {"restaurant": "string", "seats": "integer"}},
    {"name": "get_stock_price", "description": "Price of a stock", "properties": {"symbol": "string"}},
    {"name": "turn_on_light", "description": "Turn on a light", "properties": {"room": "string"}},
)


@dataclass(frozen=True)
class Tool:
    """A declared tool and, per slot of the phrase books, the argument that holds it."""

    schema: Schema
    arguments: Mapping[str, str]

    @property
    def name(self) -> str:
        return str(self.schema["function"]["name"])

    def call(self, slots: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments in the order of their names; numbers as the schema wants them."""
        properties = self.schema["function"]["parameters"]["properties"]
        values = {argument: slots[slot] for slot, argument in self.arguments.items()}
        return {k: _typed(values[k], properties[k]["type"]) for k in sorted(values)}


def draw(family: Family, rng: random.Random) -> Tool:
    """One tool of a family; now and then with an optional parameter that nobody needs."""
    name = f"{rng.choice(family.verbs)}_{rng.choice(family.nouns)}"
    if rng.random() < 0.15:
        head, *tail = name.split("_")
        name = head + "".join(part.capitalize() for part in tail)
    arguments = {p.slot: rng.choice(p.names) for p in family.parameters}
    properties = {arguments[p.slot]: _property(p, rng) for p in family.parameters}
    required = sorted(properties)
    if rng.random() < 0.3:
        properties["unit" if rng.random() < 0.5 else "lang"] = {"type": "string"}
    return Tool(_function(name, rng.choice(family.descriptions), properties, required), arguments)


def other(rng: random.Random) -> Schema:
    """A tool that no question of ours needs."""
    chosen = rng.choice(_OTHERS)
    properties = {key: {"type": kind} for key, kind in chosen["properties"].items()}
    return _function(chosen["name"], chosen["description"], properties, sorted(properties))


def _property(parameter: Parameter, rng: random.Random) -> Schema:
    kind = rng.choice(("number", "integer", "string")) if parameter.is_number else "string"
    described = {"description": rng.choice(parameter.descriptions)} if rng.random() < 0.7 else {}
    return {"type": kind, **described}


def _function(name: str, description: str, properties: Schema, required: list[str]) -> Schema:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def _typed(value: Any, kind: str) -> Any:
    return int(value) if kind in ("integer", "number") else str(value)
