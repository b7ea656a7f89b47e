"""How good is a model on rows whose labels are not in yet? Estimated from its own answers."""
