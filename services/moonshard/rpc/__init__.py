"""gRPC scaffold: server, health, reflection, domain <-> message codec."""
