"""A whole cell as processes of this machine."""
