"""The HTTP face of the daemon: API, metrics, health and dashboard."""
