"""Steps of a finished run, computed again from what it left."""
