"""Evaluation: predictions of a model, what is counted of them, and the paper's analyses."""
