"""fedtune: federated and differentially private fine-tuning of foundation models."""

__version__ = "0.1.0"
