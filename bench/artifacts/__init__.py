"""How fast an artifact arrives over a link that is cut, beside `curl` + `sha256sum` + `sync`."""
