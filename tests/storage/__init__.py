"""Tests of `stages.storage`."""
