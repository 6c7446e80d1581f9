"""Tests of `stages.train`."""
