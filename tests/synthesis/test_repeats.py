"""A stretch of 50 characters of a training row is found, one of 49 is not."""

from fedtune.synthesis.repeats import repeating_share

ROW = "".join(chr(ord("a") + i % 26) + str(i) for i in range(60))


def test_fifty_characters_are_a_repeat_and_forty_nine_are_none():
    texts = [ROW[20:70], "x" + ROW[20:69] + "x", "short", "x" + ROW[20:70]]
    assert repeating_share(texts, ["other" * 20, ROW]) == 0.5
    assert repeating_share(texts, [ROW[20:70]]) == 0.5
    assert repeating_share(texts, ["other" * 20]) == 0.0
