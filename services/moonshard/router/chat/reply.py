"""A reply's tokens to reasoning, content and tool calls, as they come. Pure.

Source: kimi-k2.5.md sections 5.4 and 5.5. Parts are told by token ids: a text that only spells a marker is text. The
same tokens give the same parts, however they are cut into deltas.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from moonshard.router.chat.call_reader import CallDelta, CallReader
from moonshard.router.chat.markers import Marker, Markers
from moonshard.router.chat.reply_text import SectionFilter, SpaceFilter
from moonshard.router.detokenizer import Detokenizer
from moonshard.router.output import ChoiceDelta


@dataclass(slots=True)
class ReplyDelta:
    """What is new of a reply."""

    reasoning: str = ""
    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)


class _Part(Enum):
    THOUGHT = auto()
    CONTENT = auto()
    BETWEEN_CALLS = auto()
    CALL = auto()
    AFTER_CALLS = auto()


class ReplyParser:
    """One choice of a reply.

    in_thought: the prompt left a thought open. may_think: else, whether the reply may open one itself. calls: None
    where no tool was offered, then markers of calls are dropped and their text is content.
    """

    def __init__(
        self, markers: Markers, text: Detokenizer, in_thought: bool, may_think: bool, calls: CallReader | None
    ) -> None:
        self.num_reasoning_tokens = 0
        self._markers = markers
        self._text = text
        self._calls = calls
        self._part = _Part.THOUGHT if in_thought else _Part.CONTENT
        self._may_think = may_think and not in_thought
        self._sections, self._spaces = SectionFilter(), SpaceFilter()
        self._waiting: deque[tuple[int, str]] = deque()
        self._num_open = 0  # characters that the caller may see and that are not parsed yet
        self._new = ReplyDelta()

    @property
    def has_calls(self) -> bool:
        return self._calls is not None and self._calls.num_calls > 0

    def push(self, delta: ChoiceDelta) -> ReplyDelta:
        """What the delta adds. Its text decides how far the tokens count: a stop text may cut or hold them back."""
        self._num_open += len(delta.text)
        self._read(delta)
        while self._waiting and len(self._waiting[0][1]) <= self._num_open:
            self._token(*self._waiting.popleft())
        if delta.finish:
            self._finish()
        new, self._new = self._new, ReplyDelta()
        return new

    def _read(self, delta: ChoiceDelta) -> None:
        stop = delta.finish.stop_token_id if delta.finish else None
        ids = delta.token_ids[:-1] if stop is not None and delta.token_ids[-1:] == (stop,) else delta.token_ids
        self._waiting.extend((token_id, self._text.push(token_id)) for token_id in ids)
        if delta.finish:
            self._waiting.append((-1, self._text.finish()))

    def _finish(self) -> None:
        """What a stop text left of the token in which it was found, then what was held back."""
        if self._waiting and self._waiting[0][0] not in self._markers.kinds:
            self._say(self._waiting[0][1][: self._num_open])
        self._waiting.clear()
        if self._part is _Part.CALL:
            self._end_call(is_cut=True)
        self._leave_text(call_follows=False)

    def _token(self, token_id: int, text: str) -> None:
        self._num_open -= len(text)
        marker = self._markers.kinds.get(token_id)
        if self._part is _Part.THOUGHT and marker is None and token_id >= 0:
            self.num_reasoning_tokens += 1
        if marker is None:
            self._say(text)
            return
        spelling = self._markers.spellings[token_id]
        self._say(text.removesuffix(spelling))  # the rest of a broken character
        self._meet(marker, spelling)

    def _say(self, text: str) -> None:
        """Text of the present part; between calls and behind them it is dropped."""
        if self._part is _Part.CALL:
            assert self._calls is not None, "a call begins only where calls are read"
            self._add_calls(self._calls.text(text))
        elif self._part in (_Part.THOUGHT, _Part.CONTENT):
            self._show(self._sections.push(text))

    def _show(self, text: str) -> None:
        if self._part is _Part.THOUGHT:
            self._new.reasoning += self._spaces.push(text)
        else:
            self._new.content += text
            self._may_think = self._may_think and not text.strip()

    def _meet(self, marker: Marker, spelling: str) -> None:
        if self._part is _Part.CALL and marker in (Marker.THOUGHT, Marker.THOUGHT_END):
            self._say(spelling)  # arguments may quote them
        elif marker is Marker.THOUGHT:
            if self._may_think and self._part is _Part.CONTENT:
                self._part, self._may_think = _Part.THOUGHT, False
        elif marker is Marker.THOUGHT_END:
            if self._part is _Part.THOUGHT:
                self._go(_Part.CONTENT, call_follows=False)
        elif marker.is_of_calls:
            self._meet_call(marker)

    def _meet_call(self, marker: Marker) -> None:
        if self._calls is None:
            if self._part is _Part.THOUGHT and marker is Marker.SECTION:
                self._go(_Part.CONTENT, call_follows=True)
        elif marker is Marker.ARGUMENTS:
            if self._part is _Part.CALL:
                self._add_calls(self._calls.begin_arguments())
        elif marker is Marker.CALL:
            self._go(_Part.CALL, call_follows=True)
            self._calls.begin()
        elif marker is Marker.SECTION:
            self._go(_Part.BETWEEN_CALLS, call_follows=True)
        elif self._part in (_Part.CALL, _Part.BETWEEN_CALLS):
            self._go(_Part.BETWEEN_CALLS if marker is Marker.CALL_END else _Part.AFTER_CALLS, call_follows=False)

    def _go(self, part: _Part, call_follows: bool) -> None:
        if self._part is _Part.CALL:
            self._end_call(is_cut=False)
        self._leave_text(call_follows)
        self._part = part

    def _leave_text(self, call_follows: bool) -> None:
        if self._part in (_Part.THOUGHT, _Part.CONTENT):
            self._show(self._sections.finish(call_follows))

    def _end_call(self, is_cut: bool) -> None:
        assert self._calls is not None, "a call begins only where calls are read"
        self._add_calls(self._calls.end(is_cut))

    def _add_calls(self, calls: Sequence[CallDelta]) -> None:
        """Pieces of one call in one delta, as far as they come together."""
        for call in calls:
            last = self._new.calls[-1] if self._new.calls else None
            if last and last.index == call.index:
                joined = CallDelta(last.index, last.id, last.name, last.arguments + call.arguments)
                self._new.calls[-1] = joined
            else:
                self._new.calls.append(call)
