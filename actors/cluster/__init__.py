"""Ray: connecting, actors in pools, nodes. No torch."""
