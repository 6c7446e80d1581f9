"""Estimate: what a run file costs in hours and bytes, from a short probe of a machine."""
