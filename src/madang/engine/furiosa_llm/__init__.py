"""The `furiosa_llm` engine: Furiosa-LLM's server in a runtime of its own."""
