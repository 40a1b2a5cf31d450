"""The same cell as gateways see it that drive vLLM over gRPC: `vllm.grpc.engine.VllmEngine` of smg-grpc-proto."""
