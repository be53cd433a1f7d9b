"""`diffunet doctor`: what this machine can do, and a proof on it that a run which is killed loses nothing."""
