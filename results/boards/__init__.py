"""Tables computed from the samples of runs: matrix, leaderboard, robustness, defenses."""
