"""Boards as Grafana reads them (schema 39): plain JSON, the data source a variable."""

from collections.abc import Iterator, Sequence
from typing import Any

from moonshard_cluster.boards.panels import Board, Kind, Panel, Row, Variable

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COMMON = (Variable("namespace", "moonshard_requests_waiting"), Variable("model_name", "moonshard_requests_waiting"))
COLUMNS = 24
REBALANCES = "increase(moonshard_placement_rebalances_total[2m]) > 0"
RESTARTS = "changes(process_start_time_seconds[2m]) > 0"


def to_json(board: Board) -> dict[str, Any]:
    """The dashboard's model."""
    return {
        "id": None,
        "uid": board.uid,
        "title": board.title,
        "description": board.description,
        "tags": ["moonshard"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource(), *map(_variable, (*COMMON, *board.variables))]},
        "annotations": {
            "list": [
                _annotation("Restarts", RESTARTS, "{{instance}} restarted"),
                _annotation("Rebalances", REBALANCES, "experts of {{model_name}} moved"),
            ]
        },
        "panels": list(_panels(board.rows)),
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}}


def _variable(variable: Variable) -> dict[str, Any]:
    return {
        "name": variable.name,
        "type": "query",
        "datasource": DATASOURCE,
        "query": f"label_values({variable.metric}, {variable.name})",
        "refresh": 2,
        "sort": 3,
        "multi": variable.multi,
        "includeAll": variable.multi,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"} if variable.multi else {},
    }


def _annotation(name: str, expression: str, title: str) -> dict[str, Any]:
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "expr": expression,
        "titleFormat": title,
        "iconColor": "orange",
        "step": "30s",
    }


def _panels(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    number, y = 1, 0
    for row in rows:
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            "panels": [],
        }
        number, y, x, tallest = number + 1, y + 1, 0, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            yield _panel(panel, number, {"x": x, "y": y, "w": panel.width, "h": panel.height})
            number, x, tallest = number + 1, x + panel.width, max(tallest, panel.height)
        y += tallest


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "id": number,
        "type": panel.kind.value,
        "title": panel.title,
        "description": panel.full_description,
        "datasource": DATASOURCE,
        "gridPos": place,
        "targets": [_target(panel, at) for at in range(len(panel.queries))],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel.kind),
    }


def _target(panel: Panel, at: int) -> dict[str, Any]:
    query = panel.queries[at]
    instant = panel.kind in (Kind.BARS, Kind.TABLE, Kind.STAT)
    return {
        "refId": chr(ord("A") + at),
        "datasource": DATASOURCE,
        "expr": query.expression,
        "legendFormat": query.legend or "__auto",
        "instant": instant,
        "range": not instant,
        "format": "table" if panel.kind is Kind.TABLE else "time_series",
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    steps = [{"color": "green", "value": None}, *({"color": colour, "value": at} for at, colour in panel.thresholds)]
    found: dict[str, Any] = {"unit": panel.unit, "min": 0, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.max_value is not None:
        found["max"] = panel.max_value
    if panel.kind is Kind.STAT:
        found["noValue"] = "no data: is the process scraped?"
    if panel.kind is Kind.SERIES:
        found["custom"] = {"lineWidth": 1, "fillOpacity": 8, "showPoints": "never"}
    return found


def _options(kind: Kind) -> dict[str, Any]:
    reduce = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    match kind:
        case Kind.SERIES:
            return {"legend": {"displayMode": "table", "placement": "right", "calcs": ["lastNotNull", "max"]}}
        case Kind.STAT:
            return {**reduce, "colorMode": "value", "graphMode": "none"}
        case Kind.BARS:
            return {**reduce, "orientation": "horizontal", "displayMode": "gradient"}
        case Kind.HEATMAP:
            colour = {"mode": "scheme", "scheme": "Inferno", "steps": 64}
            return {"calculate": False, "color": colour, "yAxis": {"axisPlacement": "left"}, "cellGap": 0}
        case Kind.TABLE:
            return {"showHeader": True, "sortBy": [{"displayName": "Value", "desc": True}]}
