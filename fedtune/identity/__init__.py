"""Who takes part in a federation: keys, certificates, requests to join, the signed roster."""
