"""Schemas of the custom resources that the chart renders: the parts it uses, closed, after their CRDs."""

from typing import Any

import jsonschema

DURATION = {"type": "string", "pattern": r"^([0-9]+(ms|s|m|h))+$"}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


def listed(items: dict[str, Any], at_least: int = 1) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": at_least}


SELECTOR = closed(["matchLabels"], matchLabels={**STRINGS, "minProperties": 1})
ENDPOINT = closed(
    ["port", "path", "interval", "scrapeTimeout"],
    port={"type": "string"},
    path={"const": "/metrics"},
    interval=DURATION,
    scrapeTimeout=DURATION,
    honorLabels={"type": "boolean"},
    relabelings={"type": "array"},
    metricRelabelings={"type": "array"},
)
NAMESPACES = closed(["matchNames"], matchNames=listed({"type": "string"}))
RULE = {
    "type": "object",
    "required": ["expr"],
    "oneOf": [{"required": ["alert"]}, {"required": ["record"]}],
    "properties": {
        "alert": {"type": "string"},
        "record": {"type": "string"},
        "expr": {"type": ["string", "number"]},
        "for": DURATION,
        "keep_firing_for": DURATION,
        "labels": STRINGS,
        "annotations": STRINGS,
    },
    "additionalProperties": False,
}
GROUP = closed(["name", "rules"], name={"type": "string"}, interval=DURATION, rules=listed(RULE))
TARGET = closed(
    ["name", "kind", "apiVersion"],
    name={"type": "string"},
    kind={"enum": ["StatefulSet", "Deployment"]},
    apiVersion={"const": "apps/v1"},
)
TRIGGER = closed(
    ["type", "metadata"],
    type={"const": "prometheus"},
    metadata=closed(
        ["serverAddress", "query", "threshold"],
        serverAddress={"type": "string", "pattern": "^https?://"},
        query={"type": "string"},
        threshold={"type": "string"},
    ),
)
POD_TEMPLATE = closed(["spec"], metadata={"type": "object"}, spec={"type": "object", "required": ["containers"]})
SCHEMAS = {
    ("monitoring.coreos.com/v1", "PodMonitor"): closed(
        ["selector", "podMetricsEndpoints"],
        selector=SELECTOR,
        podMetricsEndpoints=listed(ENDPOINT),
        namespaceSelector=NAMESPACES,
    ),
    ("monitoring.coreos.com/v1", "ServiceMonitor"): closed(
        ["selector", "endpoints"], selector=SELECTOR, endpoints=listed(ENDPOINT), namespaceSelector=NAMESPACES
    ),
    ("monitoring.coreos.com/v1", "PrometheusRule"): closed(["groups"], groups=listed(GROUP, at_least=0)),
    ("keda.sh/v1alpha1", "ScaledObject"): closed(
        ["scaleTargetRef", "triggers"],
        scaleTargetRef=TARGET,
        minReplicaCount={"type": "integer", "minimum": 0},
        maxReplicaCount={"type": "integer", "minimum": 1},
        cooldownPeriod={"type": "integer"},
        triggers=listed(TRIGGER),
    ),
    ("cert-manager.io/v1", "Certificate"): closed(
        ["secretName", "issuerRef", "dnsNames"],
        secretName={"type": "string"},
        dnsNames=listed({"type": "string"}),
        usages=listed({"enum": ["server auth", "client auth"]}),
        issuerRef=closed(
            ["name", "kind", "group"],
            name={"type": "string", "minLength": 1},
            kind={"enum": ["Issuer", "ClusterIssuer"]},
            group={"type": "string"},
        ),
    ),
    ("ray.io/v1", "RayCluster"): closed(
        ["headGroupSpec", "workerGroupSpecs"],
        rayVersion={"type": "string"},
        headGroupSpec=closed(["template"], rayStartParams=STRINGS, template=POD_TEMPLATE),
        workerGroupSpecs=listed(
            closed(
                ["groupName", "minReplicas", "maxReplicas", "template"],
                groupName={"type": "string"},
                replicas={"type": "integer"},
                minReplicas={"type": "integer"},
                maxReplicas={"type": "integer"},
                rayStartParams=STRINGS,
                template=POD_TEMPLATE,
            )
        ),
    ),
}


def problems(document: dict[str, Any]) -> list[str]:
    """What is wrong with a custom resource; a kind without a schema here is wrong, too."""
    schema = SCHEMAS.get((document["apiVersion"], document["kind"]))
    if schema is None:
        return [f"no schema for {document['apiVersion']} {document['kind']}"]
    return [
        f"{error.json_path}: {error.message}"
        for error in jsonschema.Draft7Validator(schema).iter_errors(document["spec"])
    ]
