"""Labelling: the teacher's decisions, how they are stored and read, and how far they can be trusted."""
