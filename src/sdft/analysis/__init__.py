"""What the analyze stage is made of: likeness of two texts, and the size of a weight change."""
