"""A trained policy in Hugging Face form: what a run leaves in `model/`, and what `export.py` makes of a checkpoint."""
