"""Does the balanced dataset make a classifier better, and is it diverse?

Nothing here trains: `actors.evaluation` does.
"""
