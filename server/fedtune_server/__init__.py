"""The coordinator: rounds over Flower's Grid, quorum, deadline, checkpoint and resume."""
