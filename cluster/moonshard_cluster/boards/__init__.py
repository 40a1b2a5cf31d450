"""Grafana dashboards as Python values: `python -m moonshard_cluster.boards` writes helm/moonshard/dashboards/*.json."""
