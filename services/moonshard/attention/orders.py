"""Carries out what the router orders between two iterations."""

from collections.abc import Iterable

from moonshard.attention.engine import Engine, Output
from moonshard.attention.grammar_desk import GrammarDesk
from moonshard.attention.wire import sequence_from_proto
from moonshard.errors import ProtocolMismatch, RequestError
from moonshard.v1 import control_pb2 as pb


def obey(engine: Engine, desk: GrammarDesk, messages: Iterable[pb.RouterMessage]) -> list[Output]:
    """In their order; returns what could not be admitted. Raises ProtocolMismatch for an order that is none.

    Sequences whose grammars have been compiled since the last call run from now on.
    """
    outputs: list[Output] = []
    for message in messages:
        match message.WhichOneof("body"):
            case "admit":
                outputs += [o for s in message.admit.sequences for o in _admit(engine, desk, s)]
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
    return outputs + [output for found in desk.collect() for output in engine.resume(found.sequence, found.problem)]


def _admit(engine: Engine, desk: GrammarDesk, message: pb.Sequence) -> list[Output]:
    try:
        sequence = sequence_from_proto(message, desk.known(message.grammar) if message.HasField("grammar") else None)
    except RequestError as error:
        return [engine.refuse(message.request_id, str(error))]
    outputs = engine.admit([sequence])
    if sequence.awaits_grammar and not outputs:
        desk.ask(sequence, message.grammar)
    return outputs
