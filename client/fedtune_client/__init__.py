"""The silo: a Flower ClientApp around local training."""
