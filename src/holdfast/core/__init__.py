"""Values and policies that every slice shares; nothing here knows a database or a slice."""
