"""Tests of stages/estimate."""
