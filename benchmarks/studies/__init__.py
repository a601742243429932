"""Questions asked of the harness, each answered by a script."""
