"""A run's report: one HTML file that needs nothing else, made from what the run left in its folder."""
