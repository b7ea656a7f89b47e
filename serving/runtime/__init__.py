"""The server inside every image: one model version, some workers that share its memory, and the log of what it answered."""
