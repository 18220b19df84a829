"""The Korean ledger says everything the English one does, with the same numbers."""

import re
from collections import Counter
from pathlib import Path
from typing import get_args

from experiments.ledger import claims, korean, page
from experiments.stats import rules

LEDGER = Path(korean.__file__).parent
HANGUL = re.compile("[가-힣]")
ENGLISH = re.compile(r"[A-Za-z]+(?:[ ,]+[A-Za-z]+){3,}")  # A term has at most three words.
STATEMENT = re.compile(r"다(\([^()]*\))?\.$")  # Some end with their source, in parentheses.
NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+|\d*\.?\d+")
SPELLED = {"zero": 0, "zeroing": 0, "one": 1, "a point": 1, "five": 5, "thirty": 30}

# Every English sentence of the ledger with its translation.
PAIRS = [
    pair
    for claim in claims.CLAIMS
    for pair in zip(
        (claim.text, claim.correction),
        korean.CLAIMS.get(claim.id, korean.Translation("")),
        strict=True,
    )
]


def numbers(text):
    """Count the numbers in a text that are written in digits."""
    return Counter(float(found.replace(",", "")) for found in NUMBER.findall(text))


def spelled(text):
    """Count the numbers in an English text that are written as words."""
    words = rf"\b({'|'.join(SPELLED)})\b"
    return Counter(float(SPELLED[found]) for found in re.findall(words, text.lower()))


def test_every_claim_has_its_korean():
    assert set(korean.CLAIMS) == {claim.id for claim in claims.CLAIMS}


def test_a_correction_is_empty_where_the_english_is():
    assert all(bool(english) == bool(translated) for english, translated in PAIRS)


def test_every_verdict_has_its_korean():
    assert list(korean.VERDICTS) == list(get_args(rules.Verdict))
    assert len(set(korean.VERDICTS.values())) == len(korean.VERDICTS)


def test_every_phrase_is_one_of_the_pages():
    files = [path for path in LEDGER.rglob("*") if path.suffix in {".py", ".html"}]
    pages = "".join(path.read_text(encoding="utf-8") for path in files if path.stem != "korean")
    assert [english for english in korean.PHRASES if english not in pages] == []
    assert {"Claim", "Source", "Verdict", "Measured", "Experiment"} < set(korean.PHRASES)
    assert len(korean.PHRASES) == 7


def test_all_of_it_is_korean():
    sentences = [translated for _, translated in PAIRS if translated]
    for text in [*sentences, *korean.VERDICTS.values(), *korean.PHRASES.values()]:
        assert HANGUL.search(text), text
        assert not ENGLISH.search(text), text
        assert "  " not in text, text
        assert text == text.strip(), text


def test_sentences_are_plain_statements_with_a_full_stop():
    assert [text for _, text in PAIRS if text and not STATEMENT.search(text)] == []


def test_numbers_are_those_of_the_english():
    for english, translated in PAIRS:
        missing = numbers(english) - numbers(translated)
        added = numbers(translated) - numbers(english) - spelled(english)
        assert not missing, f"{translated}: expected {missing}"
        assert not added, f"{translated}: {added} is not in: {english}"


def test_a_verdict_is_one_space_from_its_mark_in_either_language(tmp_path):
    """The hidden language leaves no second space, at which a line might break."""
    page.write({}, tmp_path)
    content = (tmp_path / "index.html").read_text(encoding="utf-8")
    (verdicts,) = set(re.findall(r'<span class="verdict .*?</span></td>', content))
    in_korean = re.sub(r'<span class="en">.*?</span>|<wbr>', "", verdicts)
    in_english = re.sub(r'<wbr>|<span class="ko".*?</span>', "", verdicts)
    for shown, words in (
        (in_korean, korean.VERDICTS[rules.UNMEASURED]),
        (in_english, rules.UNMEASURED),
    ):
        assert "".join(re.split("<.*?>", shown)).rstrip() == f"·&nbsp;{words}"
