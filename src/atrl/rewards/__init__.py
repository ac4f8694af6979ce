"""Stage 2 of a training step: responses in, rewards with their parts and a status out."""
