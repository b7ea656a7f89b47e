"""Drift: do the rows that come in still look like those that a version learnt from?"""
