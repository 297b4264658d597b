"""Numbers as people write them: which of a text's characters are one, and what it comes to."""
import pytest

from tasks.opd.data.numerals import bold_number, last_number, numbers_of


@pytest.mark.parametrize("text, number", [
    ("so 3 + 4 = 7.", 7), ("$1,200.50 in all", 1200.5), ("-3", -3), ("minus: \u22123", -3), ("x2", None),
    ("1e3", 1000), (".5 of it", 0.5), ("12 apples, 3 pears", 3), ("", None), ("40%", 40),
    ("1,2,3", 3), ("9" * 400, None),
    ("24 m^2", 24), ("24 m\u00b2", 24), ("24 m^{-2}", 24), ("1 200", 1200), ("1\u202f200", 1200), ("1'200", 1200),
    ("0,100", 100), ("12,3456", 3456), ("1/2", 0.5), ("2 1/2", 2.5), ("2\u00bd", 2.5), ("\u00bd", 0.5),
    (r"\frac{1}{2}", 0.5),
    (r"-\frac12", -0.5), (r"2\frac{1}{2}", 2.5), (r"\dfrac{-3}{4}", -0.75), ("5/0", None), ("10^6", 1e6),
    ("2^{10}", 1024),
    ("10\u2076", 1e6), (r"1.5 \times 10^{-3}", 0.0015), ("3 x 10^2", 300), ("10^9999", None), ("7 x 8", 8),
    ("-$5", -5), ("$-5", -5), ("\u2013\u20ac5", -5), ("3-5", 5), ("7 (2 more than 5)", 7), ("(7)", 7), ("f(2) = 3", 3),
    (r"1{,}200", 1200), (r"1\,200", 1200), (r"1,\!200", 1200), (r"\$5", 5), (r"50\%", 50), (r"90^\circ", 90),
])
def test_last_number(text, number):
    assert last_number(text) == (None if number is None else pytest.approx(number))


def test_all_numbers_that_stand_alone_are_found_in_order():
    assert numbers_of("3, 5 and 1,000 of 2 1/2 (not 9) at 2^3 m^2") == [3, 5, 1000, 2.5, 8]


@pytest.mark.parametrize("text, number", [
    ("She has **7** apples.", 7), ("**7 apples** and 2 pears", 7), ("**x = 7**", 7), ("**Total: $1,200**", 1200),
    ("**3** then **4**", 4), ("**Step 2:** add", None), ("**2. Add**", None), ("**Day 1**", None), ("**3 + 4**", None),
    ("**2**: add", None), ("7", None)])
def test_a_bold_number_counts_unless_it_heads_a_step(text, number):
    assert bold_number(text) == number
