"""What a run will need, by arithmetic alone: dataclasses in, bytes and seconds out. Nothing here imports torch."""
