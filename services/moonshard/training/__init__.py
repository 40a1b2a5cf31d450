"""Trains a small model of K2.5's shape from nothing: what is trained is what is served. Imported by nothing else."""
