"""Tests of `stages.evaluate`."""
