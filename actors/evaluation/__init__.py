"""Training the arms of an evaluation: `training` is torch without Ray, `tasks` is Ray without torch."""
