"""Tests of `stages.data`."""
