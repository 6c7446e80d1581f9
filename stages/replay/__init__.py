"""Replay: any augmented, mixed view of any sample, made again from its address alone.

`decide` turns an address into plain numbers, `apply` turns an image and those numbers into a
uint8 view, `mix` blends the views of a pair on the model's device, `order` is the one stream of
views that every run reads.
"""
