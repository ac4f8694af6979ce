"""Scoring a policy on held-out problems."""
