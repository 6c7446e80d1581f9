"""Tests of `stages.replay`."""
