"""Metrics of a monitoring system: asked once a tick for all models, beside the loop, and joined to policies when a model is looked at.

`port` says what a source is, `prometheus` and `fake` are two; `named` turns settings into queries, `tables` joins answers to models, and
`board` asks and remembers.
"""
