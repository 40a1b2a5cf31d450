"""What a disturbed run lost against the undisturbed one. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from moonshard_cluster.chaos.resources import Growth
from moonshard_cluster.chaos.streams import StreamResult

WORDS_MAX = 5


@dataclass(frozen=True, slots=True)
class Report:
    """num_lost: streams with too few tokens or too many. num_different: streams of the right length, wrong content.

    faults: "kill expert-3" and so on, in order. pause_limit_s: of the verdict; None: any pause will do. resources: of a
    soak, what each process held.
    """

    faults: tuple[str, ...]
    num_streams: int
    num_failed: int
    num_lost: int
    num_different: int
    longest_pause_s: float
    undisturbed_pause_s: float
    pause_limit_s: float | None = None
    errors: tuple[str, ...] = ()
    resources: tuple[Growth, ...] = ()

    @property
    def passed(self) -> bool:
        in_time = self.pause_limit_s is None or self.longest_pause_s <= self.pause_limit_s
        return in_time and self.num_failed == self.num_lost == self.num_different == 0 and not self.grown

    @property
    def grown(self) -> list[Growth]:
        """Processes that hold more at the end than at the beginning."""
        return [it for it in self.resources if not it.is_flat]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def judge(
    undisturbed: Sequence[StreamResult],
    disturbed: Sequence[StreamResult],
    faults: Sequence[str],
    pause_limit_s: float | None,
    resources: Sequence[Growth] = (),
) -> Report:
    expected = {result.number: result.tokens for result in undisturbed}
    whole = [result for result in disturbed if not result.error]
    wrong = [result for result in whole if result.tokens != expected[result.number]]
    num_lost = sum(len(result.tokens) != len(expected[result.number]) for result in wrong)
    errors = sorted({result.error for result in disturbed if result.error})
    return Report(
        faults=tuple(faults),
        num_streams=len(disturbed),
        num_failed=len(disturbed) - len(whole),
        num_lost=num_lost,
        num_different=len(wrong) - num_lost,
        longest_pause_s=max((result.pause_s for result in disturbed), default=0.0),
        undisturbed_pause_s=max((result.pause_s for result in undisturbed), default=0.0),
        pause_limit_s=pause_limit_s,
        errors=tuple(errors[:WORDS_MAX]),
        resources=tuple(resources),
    )
