"""Tests of `stages.plotting`."""
