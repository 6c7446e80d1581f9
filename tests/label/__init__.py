"""Tests of `stages.label`."""
