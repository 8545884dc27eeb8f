"""What is promised about people in the data: units, noise, accounting, and budgets."""
