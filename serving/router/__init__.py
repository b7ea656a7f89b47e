"""The router: one process between clients and the replicas of every model on this machine.

It exists so that versions can change without a client noticing: it splits live traffic by weight (sticky by request key), mirrors
requests to a shadow version whose answers are thrown away, repeats a request elsewhere when a replica dies under it, and lets the
requests of a departing version finish. It decides nothing: its table comes from `deployers.routed` over a Unix socket, under a fencing
token. It imports nothing else of this project, and no ML library, so that it starts in a fraction of a second.

Run it as `python -m serving.router --help`.
"""
