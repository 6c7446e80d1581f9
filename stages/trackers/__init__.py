"""Trackers: what TensorBoard, Weights & Biases, MLflow and Trackio are sent of a training."""
