"""Carries out what the router orders between two iterations."""

from collections.abc import Iterable

from moonshard.attention.engine import Engine, Output
from moonshard.attention.wire import sequence_from_proto
from moonshard.errors import ProtocolMismatch, RequestError
from moonshard.grammar import GrammarEngine
from moonshard.v1 import control_pb2 as pb


def obey(engine: Engine, grammars: GrammarEngine, messages: Iterable[pb.RouterMessage]) -> list[Output]:
    """In their order; returns what could not be admitted. Raises ProtocolMismatch for an order that is none."""
    outputs: list[Output] = []
    for message in messages:
        match message.WhichOneof("body"):
            case "admit":
                outputs += [o for s in message.admit.sequences for o in _admit(engine, grammars, s)]
            case "abort":
                if message.abort.all:
                    engine.forget_everything()
                engine.abort(message.abort.request_ids)
            case "flush_cache":
                engine.scheduler.tables.flush()
            case "members":
                pass  # of before the dispatcher followed them; it was told the latest
            case other:
                raise ProtocolMismatch(f"the router sent {other!r}, expected admit, abort, flush_cache or members")
    return outputs


def _admit(engine: Engine, grammars: GrammarEngine, message: pb.Sequence) -> list[Output]:
    try:
        sequence = sequence_from_proto(message, grammars)
    except RequestError as error:
        return [engine.refuse(message.request_id, str(error))]
    return engine.admit([sequence])
