"""Training: volumes and their variations, random crops, the stages' losses, and the run."""
