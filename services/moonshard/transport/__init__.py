"""Dispatch and combine: the data plane between attention workers and expert shards."""
