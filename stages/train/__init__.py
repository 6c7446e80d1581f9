"""Training: plan, batches, losses, optimiser, the training loop, checkpoints and metrics."""
