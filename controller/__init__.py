"""The loop: the only room that knows the others."""
