"""The `madang` command: parses, calls an API or a program, prints. Decides nothing."""
