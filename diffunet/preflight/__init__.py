"""`diffunet train CONFIG --dry-run`: what would waste a run, found before its first step.

Each part looks at one thing and gives a Section: facts for people and programs, and warnings. Only what makes training
impossible is an error; a warning is an opinion, and the exit code stays 0.
"""
