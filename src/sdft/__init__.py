"""Fine-tune language models without forgetting."""
