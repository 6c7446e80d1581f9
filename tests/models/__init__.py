"""Tests of `stages.models`."""
