"""A whole cell on a Ray cluster: Ray places and restarts the workers, membership stays the router's."""
