"""What the owner of a model asked for: the policy schema, its triggers and metrics.

Everything here but `reading` is pure. This room imports none of ours.
"""
