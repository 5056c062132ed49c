"""The service's tests: unit (no sockets), integration (real processes), bench (figures)."""
