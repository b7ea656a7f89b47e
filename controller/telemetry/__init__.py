"""What the controller says about itself: structured logs and its own metrics."""
