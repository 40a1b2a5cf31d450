"""Text on its way to the caller, less what may turn out not to be meant for them. Pure."""

from moonshard.router.chat.markers import SECTION_MISSPELLED

_MAX_SPACES = 16


class SectionFilter:
    """Holds back the end of a text while it may be the misspelled opener of a section of calls."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        whole = self._held + text
        start = whole.rfind("<")
        if start < 0 or not _may_open(whole[start:]):
            start = len(whole)
        self._held = whole[start:]
        return whole[:start]

    def finish(self, call_follows: bool) -> str:
        """What was held back, unless it opens the call that follows."""
        text, self._held = self._held, ""
        return "" if call_follows and text.startswith(SECTION_MISSPELLED) else text


def _may_open(text: str) -> bool:
    """Whether it begins the spelling, or is the spelling with a few spaces behind it."""
    if len(text) < len(SECTION_MISSPELLED):
        return SECTION_MISSPELLED.startswith(text)
    spaces = text.removeprefix(SECTION_MISSPELLED)
    return len(spaces) < len(text) and len(spaces) <= _MAX_SPACES and not spaces.strip()


class SpaceFilter:
    """Holds back spaces at the end: a thought ends with its last word."""

    def __init__(self) -> None:
        self._spaces: list[str] = []

    def push(self, text: str) -> str:
        words = text.rstrip()
        if not words:
            self._spaces.append(text)
            return ""
        spaces = "".join(self._spaces)
        self._spaces = [text[len(words) :]]
        return spaces + words
