"""Runs stages over many machines and commits what they make. The only home of Ray."""
