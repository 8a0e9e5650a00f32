"""What everything else stands on: errors in one sentence, files, tables, text, shapes, random numbers, processes.

Imports nothing else of colocate.
"""
