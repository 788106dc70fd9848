"""Hand a run to a cluster: what is sent, under which id, and as what: a Ray job, a RayJob or a batch script.

Nothing here knows Ray. `actors.cluster.jobs` talks to its job API.
"""
