"""Families of models: the interface, the registry, and the families that come with Ratchet."""
