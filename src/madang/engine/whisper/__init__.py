"""The `whisper` engine: speech to text on processors, through faster-whisper, with an HTTP server of ours."""
