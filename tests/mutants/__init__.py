"""Lines of the code put out of action, one at a time: a check must turn red for each."""
