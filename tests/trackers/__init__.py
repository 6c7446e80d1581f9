"""Tests of stages.trackers."""
