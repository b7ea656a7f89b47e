"""Search and train: spaces, folds, studies with budgets, and the job that fits the chosen model."""
