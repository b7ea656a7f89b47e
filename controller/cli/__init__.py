"""The command line: `ratchet`."""
