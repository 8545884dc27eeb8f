"""Base models and adapters."""

import logging

# peft imports bitsandbytes, which warns of a faster kernel that isn't installed, 4 bits or not
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
