"""Whole commands: kills, clusters, object stores, full disks, foreign readers."""
