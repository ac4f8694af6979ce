"""Anchor-token reinforcement learning with verifiable rewards for multimodal language models."""

__version__ = "0.1.0"
