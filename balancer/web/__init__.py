"""Pages for one person on this machine: the door that every request passes, the server, images by key."""
