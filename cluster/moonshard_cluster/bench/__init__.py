"""Figures for users: what a cell serves, and what its machine could do at best."""
