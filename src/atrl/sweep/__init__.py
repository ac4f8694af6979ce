"""Sweeps: every job of ``python train.py -m …`` in a process of its own, and what is left to do of a stopped one."""
