"""What everything else stands on: errors that are one sentence, whole files, text, shapes, random numbers, processes.

Imports nothing else of colocate.
"""
