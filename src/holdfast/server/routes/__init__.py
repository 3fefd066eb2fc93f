"""What the server answers: a module per noun, and thin ones."""
