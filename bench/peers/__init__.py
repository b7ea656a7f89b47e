"""What Ratchet is compared with, written as one would write it without Ratchet."""
