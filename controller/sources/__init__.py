"""Where policies come from, other than a person's hand: a port, Git behind it, and what is followed from there."""
