"""Families of models: the interface (`base`), the families that come with Ratchet, and the registry."""
