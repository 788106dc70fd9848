"""Do the generated images make a classifier better? The experiment's arms, statistics, rule and files.

Nothing here trains: `actors.evaluation` does.
"""
