"""The page docs/privacy-bugs.md: python -m tests.mutations.table > docs/privacy-bugs.md."""

from tests.mutations.bugs import BUGS

HEAD = """# Bugs that the tests find

Claims of differential privacy turn false in known ways. Each of these was put into fedtune's own
code, one at a time, in a process of its own (`tests/mutations`), and the tests named beside it went
red: `pytest tests/mutations`. The list comes from the open issues of Opacus, JAX-Privacy, fastDP,
private-transformers, dp-transformers and Flower, from papers, and from folklore. An issue is named
for what it reports there; the bug here is its like in this code.

Twelve ways are met again and again, and the table speaks of them by number:

1. Poisson sampling is counted, fixed batches are shuffled.
2. The sample rate is that of rows or batches, not of the units that are protected.
3. A row holds several people, or a person has many rows, under a claim about rows.
4. Gradients of single examples are silently wrong: tied weights, stale parameters, means for sums.
5. An empty batch is skipped, or not counted.
6. Clipping and noise know different norms after accumulation.
7. Noise comes from a seed, or its floats betray the sum.
8. The budget is forgotten when something restarts, or the same data come under another name.
9. Exact counts, losses or metrics are published beside the model.
10. Batch statistics, shared masks, or scaling fitted to the data.
11. Silos are weighted by their numbers of examples under an unweighted clip.
12. Noise in shares is calibrated for silos that then drop out.

| Bug | Where it was met | Put into | Found by |
|---|---|---|---|
"""


def page() -> str:
    """The page's text."""
    rows = []
    for bug in BUGS:
        found = ", ".join(f"`{test.rsplit('/', 1)[1]}`" for test in bug.tests)
        rows.append(f"| {bug.name} | {bug.seen_in} | `{bug.file}` | {found} |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(page(), end="")
