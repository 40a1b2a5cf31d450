"""Constraints of a request as grammars for the attention worker: checked here, followed there."""

from moonshard.router.constraints.grammars import Grammars

__all__ = ["Grammars"]
