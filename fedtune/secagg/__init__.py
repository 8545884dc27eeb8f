"""Secure aggregation (Bonawitz et al. 2017, Bell et al. 2020) as pure state machines, without I/O.

`terms` fixes a round; `silo` and `coordinator` are the two machines; `messages` is what travels
between them; `shamir`, `masks` and `fixed_point` are what they compute with.
"""
