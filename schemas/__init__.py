"""The words of the project as data: run file, recipe, tables, receipts, errors.

Nothing here imports torch, Ray or any other room of the house.
"""
