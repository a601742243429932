"""How boards look on a terminal, in markdown, CSV and JSON."""
