"""Telling people what happened, once: the outbox of the store, and the ways out of it."""
