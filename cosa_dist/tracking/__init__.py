"""Recording of runs: a mirror that survives crashes, MLflow beside it, and the leaderboard."""
