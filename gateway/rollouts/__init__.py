"""The rollout API: what is said about trajectories beside their model calls."""
