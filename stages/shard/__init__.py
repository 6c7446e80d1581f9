"""Sharding: images into tars with an index."""
