"""Tests of `stages.sources`."""
