"""Is it the world that changed, or the data? A profile of the rows that were accepted, and rules for what is wrong with new ones.

`summary` puts a block of rows into numbers, `profile` holds the history's blocks, `column_rules`, `table_rules` and `rewritten` say what
is wrong, `kept` keeps a profile in the state folder. A window that is like the history, or has drifted from it, has no fault.
"""
