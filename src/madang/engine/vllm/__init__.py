"""The `vllm` engine: vLLM's server in a runtime of its own, on CUDA, processors and Rebellions chips."""
