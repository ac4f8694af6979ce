"""Credit schemes: how much of a rollout's advantage each of its tokens gets. One file a scheme."""
