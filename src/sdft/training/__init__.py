"""What the train stage is made of: rows with their loss masks, checkpoints, and the trainer."""
