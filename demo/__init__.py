"""The demonstration: a year of New York flights in minutes, against the real daemon, router and serving processes.

It stands outside: it speaks to Ratchet as its users do, by command line and HTTP, and imports nothing of it.
"""
