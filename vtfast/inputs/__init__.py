"""What models are asked with: pictures and videos, prompts, data files, checkpoints."""
