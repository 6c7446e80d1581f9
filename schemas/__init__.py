"""The words of the project as data: run file, recipe, tables, receipts, errors.

Nothing here imports torch, Ray or another package of the project.
"""
