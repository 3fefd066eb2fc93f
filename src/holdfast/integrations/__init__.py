"""One module per framework or driver that Holdfast works with; each imports its own."""
