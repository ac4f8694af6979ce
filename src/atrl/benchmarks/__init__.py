"""The field's benchmarks: one small file each, with the official rule; see `base.py` for what they share."""
