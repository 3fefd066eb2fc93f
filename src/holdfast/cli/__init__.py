"""The command line: `main` with the program, and one module for each noun."""
