"""Tests of `stages.inspect`."""
