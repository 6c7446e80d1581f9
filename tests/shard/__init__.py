"""Tests of `stages.shard`."""
