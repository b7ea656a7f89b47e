"""The daemon's settings and their defaults. Read by `controller.wiring` alone."""
