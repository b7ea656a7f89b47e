"""An OCI registry: images of the layout are pushed there, and base images fetched from there. Without a Docker daemon.

Only jobs import what speaks to it (`transport` imports oras and requests, 0.2 s): the daemon knows addresses (`names`), no more.
"""
