"""From a manifest to a training loop: one file for each thing a loop may want.

`selection` is the door they all go through: it alone decides which rows a split gives. Libraries that are
not needed for a run (torch aside) are extras, imported when they are asked for.
"""
