"""EBNF as clients write it (GBNF, with ::= and a root rule) to Lark. Lark passes through."""

from llguidance.gbnf_to_lark import any_to_lark

from moonshard.errors import RequestError


def to_lark(grammar: str) -> str:
    """Raises RequestError with the place of the error."""
    try:
        return any_to_lark(grammar)
    except RecursionError:
        raise RequestError("constraint", "ebnf: nested too deep") from None
    except Exception as error:  # noqa: BLE001 - the converter raises the bare class
        raise RequestError("constraint", f"ebnf: {error}") from None
