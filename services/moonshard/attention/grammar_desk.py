"""Grammars are compiled in a thread of their own: a large schema takes half a second, and everybody's next token would
wait for it.

A sequence whose grammar is not ready has its slot and its blocks and takes no part in steps. The compiler releases the
interpreter's lock.
"""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from moonshard.attention.guide import Guide
from moonshard.attention.sequence import Sequence
from moonshard.errors import RequestError
from moonshard.grammar import GrammarEngine, GrammarMatcher
from moonshard.v1 import control_pb2 as pb

CLOSE_S = 2.0


@dataclass(frozen=True, slots=True)
class Compiled:
    """What came of a sequence's grammar: it is in the sequence, or there is a problem with it."""

    sequence: Sequence
    problem: str = ""


class GrammarDesk:
    """`ask` and `collect` are the loop's. wake: called from the desk's thread after each grammar.

    is_wanted: whether a sequence still runs; any thread may ask. Those that do not are passed over, and no more wait
    than run.
    """

    def __init__(
        self, grammars: GrammarEngine, wake: Callable[[], None], is_wanted: Callable[[Sequence], bool]
    ) -> None:
        self._grammars = grammars
        self._wake = wake
        self._is_wanted = is_wanted
        self._waiting: deque[tuple[Sequence, pb.Grammar]] = deque()
        self._done: deque[Compiled] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="grammars", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def known(self, message: pb.Grammar) -> Guide | None:
        """The guide of a grammar that was compiled lately, at once."""
        matcher = self._grammars.known_matcher(message.text)
        return _guide(message, matcher) if matcher else None

    def ask(self, sequence: Sequence, message: pb.Grammar) -> None:
        """Have it compiled for a sequence that waits for it."""
        assert sequence.awaits_grammar, "nobody else may be handed to the thread"
        with self._changed:
            # Who left does not take up room: as many wait as run, which the scheduler bounds.
            self._waiting = deque(it for it in self._waiting if self._is_wanted(it[0]))
            self._waiting.append((sequence, message))
            self._changed.notify()

    def collect(self) -> list[Compiled]:
        """Those that are done, in their order, each once."""
        found = []
        while self._done:
            found.append(self._done.popleft())
        return found

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return
                sequence, message = self._waiting.popleft()
            if self._is_wanted(sequence):
                self._done.append(self._compile(sequence, message))
                self._wake()

    def _compile(self, sequence: Sequence, message: pb.Grammar) -> Compiled:
        try:
            sequence.follow(_guide(message, self._grammars.matcher(message.text)))
        except RequestError as error:
            return Compiled(sequence, str(error))
        return Compiled(sequence)


def _guide(message: pb.Grammar, matcher: GrammarMatcher) -> Guide:
    return Guide(matcher, message.after_token_id if message.HasField("after_token_id") else None)
