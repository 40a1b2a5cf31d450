"""The Helm chart's own options, from which values.yaml, its schema and the table of its README are written."""
