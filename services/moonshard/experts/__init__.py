"""The expert-shard worker: its experts, the endpoint loop, load counters, and the process around them."""
