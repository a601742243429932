"""Results: the parquet store of a run, the statistics over it, and the tables shown to people.

Knows files, numbers and text; nothing about attacks, models or how a run was executed.
"""
