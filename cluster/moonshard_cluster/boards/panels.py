"""The nouns of a dashboard. A query may use the variables below and must be about what we export."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

# In every query: which installation and model. Without Kubernetes there is no namespace label, which .* matches too.
SCOPE = 'namespace=~"$namespace",model_name=~"$model_name"'
EMPTY_UNTIL = "Empty until "


class Kind(Enum):
    """As Grafana calls them."""

    SERIES = "timeseries"
    STAT = "stat"
    HEATMAP = "heatmap"
    BARS = "bargauge"
    TABLE = "table"


@dataclass(frozen=True, slots=True)
class Query:
    """legend: as in Grafana, {{label}}."""

    expression: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One question. unit: Grafana's id. empty_until: the event without which there is nothing to see.

    thresholds: (from this value on, colour), ascending. width: of 24 columns.
    """

    title: str
    description: str
    queries: Sequence[Query]
    unit: str
    kind: Kind = Kind.SERIES
    width: int = 8
    height: int = 8
    empty_until: str = ""
    thresholds: Sequence[tuple[float, str]] = ()
    max_value: float | None = None

    @property
    def full_description(self) -> str:
        return f"{self.description} {EMPTY_UNTIL}{self.empty_until}." if self.empty_until else self.description


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Variable:
    """Values of one label of a metric. multi: several or all may be chosen."""

    name: str
    metric: str
    multi: bool = True


@dataclass(frozen=True, slots=True)
class Board:
    """uid: fixed, so that links keep working; the file is named after it."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = ()


def rate(metric: str, labels: str = "") -> str:
    """Of one counter in scope, per second; labels: more matchers."""
    return f"rate({metric}{{{_scope(labels)}}}[$__rate_interval])"


def value(metric: str, labels: str = "") -> str:
    """Of one gauge in scope."""
    return f"{metric}{{{_scope(labels)}}}"


def quantile(share: float, metric: str, by: str = "", labels: str = "") -> Query:
    """Of a histogram; `by` labels name the lines."""
    groups = f"le, {by}" if by else "le"
    legend = f"p{share * 100:g}" + "".join(f" {{{{{name.strip()}}}}}" for name in by.split(",") if name)
    rates = rate(f"{metric}_bucket", labels)
    return Query(f"histogram_quantile({share:g}, sum by ({groups}) ({rates}))", legend)


def quantiles(metric: str, shares: Sequence[float] = (0.5, 0.95, 0.99), labels: str = "") -> list[Query]:
    return [quantile(share, metric, labels=labels) for share in shares]


def mean(metric: str, by: str) -> Query:
    """Of a histogram's values in the interval."""
    total, count = rate(f"{metric}_sum"), rate(f"{metric}_count")
    return Query(f"sum by ({by}) ({total}) / sum by ({by}) ({count})", f"{{{{{by}}}}}")


def _scope(labels: str) -> str:
    return f"{SCOPE},{labels}" if labels else SCOPE
