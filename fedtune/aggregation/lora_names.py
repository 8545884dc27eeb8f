"""Which tensors of an adapter are the two factors of one product, in PEFT's naming."""

import re
from collections.abc import Mapping
from typing import Any

from fedtune.errors import InputError
from fedtune.tensors import Spec


def lora_pairs(adapter: Spec) -> list[tuple[str, str]]:
    """Names of the (A, B) factors. Raises InputError on what isn't pairs of matrices."""
    shapes = dict(adapter)
    pairs = [(name, name.replace("lora_A", "lora_B")) for name in shapes if "lora_A" in name]
    paired = {name for pair in pairs for name in pair}
    odd = [name for name in shapes if "lora_" in name and name not in paired]
    odd += [b for _, b in pairs if b not in shapes]
    odd += [name for name in paired if name in shapes and len(shapes[name]) != 2]
    if odd or not pairs:
        raise InputError(
            f"not pairs of LoRA matrices: {', '.join(sorted(odd)[:3]) or 'no lora_A'}",
            where="federation.aggregation",
            mend="set it to `fedavg`, or give `adapter.target_modules` linear layers only",
        )
    return pairs


def residual_spec(adapter: Spec, layout: Mapping[str, Any]) -> Spec:
    """The spec that a residual for `adapter` has by an untrusted layout that tells its ranks.

    Raises ValueError unless each pair has a rank from 1 to the least side of its matrix.
    """
    names, told = layout.get("names"), layout.get("shapes")
    if not isinstance(names, list) or not isinstance(told, list) or len(names) != len(told):
        raise ValueError("the residual has no list of names and one of shapes")
    claimed = dict(zip(map(str, names), map(str, told), strict=True))
    shapes, spec = dict(adapter), {}
    for name_a, name_b in lora_pairs(adapter):
        inner, out = shapes[name_a][1], shapes[name_b][0]
        found = re.fullmatch(rf"([1-9][0-9]{{0,8}})x{inner}", claimed.get(name_a, ""))
        if found is None or int(found[1]) > min(inner, out):
            raise ValueError(
                f"the residual's {name_a} is {claimed.get(name_a)!r}, want a rank from 1 to "
                f"{min(inner, out)} and {inner} columns"
            )
        spec[name_a], spec[name_b] = (int(found[1]), inner), (out, int(found[1]))
    return tuple(sorted(spec.items()))
