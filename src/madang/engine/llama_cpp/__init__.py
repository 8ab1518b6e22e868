"""The `llama_cpp` engine: llama.cpp's own server, run in a child of ours through xllamacpp."""
