"""The server: HTTP, the protocol, metrics and the page; needs the extra `serve`."""
