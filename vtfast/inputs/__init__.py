"""Reading what a user names: pictures and videos, prompts, data files, checkpoints, devices."""
