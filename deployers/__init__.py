"""Versions, images, rollout arithmetic, and the targets that serve them."""
