"""Other projects' networks and folders, to and from ours. One module a project; each is imported by its own name."""
