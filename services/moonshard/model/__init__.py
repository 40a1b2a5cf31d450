"""Kimi K2.5 in pure PyTorch: no processes, no gRPC. Importing this package imports no torch."""
