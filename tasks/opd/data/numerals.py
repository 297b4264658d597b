"""Numbers as people and models write them: thousands, signs before currency, fractions, powers, LaTeX."""
import math
import re
import unicodedata

DASHES = str.maketrans(dict.fromkeys("\u2212\u2013\u2014\u2012\u2010\u2011\ufe63\uff0d", "-"))
SPACES = str.maketrans(dict.fromkeys("\u00a0\u2009\u202f", " "))
WRITTEN_OUT = [(re.compile(pattern), plain) for pattern, plain in (  # LaTeX and Unicode -> plain text, in this order
    (r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}", r" \1 "),
    (r"(?<=\d)\s*(?=\\[dt]?frac|[\u00bc-\u00be\u2150-\u215e])", " "),  # 2\frac{1}{2} is a mixed number
    (r"\\[dt]?frac\s*\{\s*([-+]?[\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}", r"\1/\2"),
    (r"\\[dt]?frac\s*(\d)\s*(\d)", r"\1/\2"),
    (r"\{,\}", ","), (r"\\!|\\left|\\right|\\displaystyle", ""), (r"\\[,;:\s()\[\]]|~", " "),
    (r"\\(?:times|cdot)\b", "\u00d7"), (r"\\approx\b", "\u2248"), (r"\^?\\circ\b|\^\{\\circ\}", "\u00b0"),
    (r"\\([$%&#])", r"\1"), (r"([\^_])\s*\{\s*([^{}]*?)\s*\}", r"\1\2"))]
RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079\u207a\u207b]+")
VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
DIGITS = r"(?:[1-9]\d{0,2}(?:(?:,\d{3})+|(?:\ \d{3})+|(?:'\d{3})+)(?![\d,]*\d)|\d+)(?:\.\d+)?|\.\d+"
NUMBER = re.compile(rf"""
    (?<![\w.^])(?<!\^[-+])                               # not within a word, a decimal or the exponent of a unit
    (?P<sign>[-+]?)(?:[$\u20ac\u00a3\u00a5\u20b9]\ ?)?(?P<inner>[-+]?)
    (?:(?P<whole>\d+)\ (?=\d+\ ?/\ ?\d))?                # of a mixed number
    (?P<digits>{DIGITS})
    (?:[eE](?P<e>[-+]?\d+))?
    (?:\ ?/\ ?(?P<divisor>\d+(?:\.\d+)?))?
    (?:(?:\ ?\^\ ?|\*\*(?=[-\d]))(?P<power>[-+]?\d+))?
    (?:\ ?[\u00d7x*\u00b7]\ ?10(?:\ ?\^\ ?|\*\*)(?P<ten>[-+]?\d+))?""", re.VERBOSE)
ASIDE = re.compile(r"(?<=\S)\s*\([^()]*\)|\[[^\[\]]*\]")
BOLD = re.compile(r"\*\*([^*\n]+)\*\*(?!\s*:)")
LEAD = re.compile(r"[=\u2248:]|\bis\b")
EQUALS = re.compile(r"[=\u2248]")
UNIT = re.compile(r"""(?![a-cnxyz]\b)                     # 2x is no number with a unit
    (?:[^\d=+*/^()\\|!\u221a\u00d7\u00f7\u00b7-]|(?<=[a-z])\^-?\d|/(?=\s?[a-z]))*""", re.VERBOSE)
HEADING = re.compile(r"\d|\A[.)]\s")


def written_out(text: str) -> str:
    """The text with one sort of dash and space, and with LaTeX's and Unicode's ways to write numbers made plain."""
    text = text.translate(DASHES).translate(SPACES)
    for pattern, plain in WRITTEN_OUT:
        text = pattern.sub(plain, text)
    text = RAISED.sub(lambda found: "^" + unicodedata.normalize("NFKC", found[0]).translate(DASHES), text)
    return VULGAR.sub(lambda found: unicodedata.normalize("NFKC", found[0]).replace("\u2044", "/"), text)


def numbers_of(text: str) -> list[float]:
    """The finite numbers of a text that stand alone: not in a word, nor as a unit's exponent, nor in an aside.

    "24 m^2" has 24, "7 (2 more than 5)" 7, "1 200" 1200, "-$5" -5, "2 1/2" 2.5, "1 \\times 10^6" 1000000; what stands
    in parentheses counts where nothing stands outside. A percent sign is passed over.
    """
    text = written_out(text)
    found = [*NUMBER.finditer(ASIDE.sub(" ", text))] or [*NUMBER.finditer(text)]
    return [value for match in found if (value := value_of(match)) is not None]


def last_number(text: str) -> float | None:
    """The last number of a text that stands alone; None when there is none."""
    return next(reversed(numbers_of(text)), None)


def answer_number(text: str) -> float | None:
    """The number that a short answer gives: its last one, but of an equation the last side that is one number.

    "x = 4", "12 = 3 * 4" and "x = 3 * 4 = 12" give 4, 12 and 12; a unit may follow the number.
    """
    sides = [side.strip(" *_`$.,;:") for side in EQUALS.split(written_out(text))]
    for side in reversed(sides if len(sides) > 1 else []):
        match = NUMBER.match(side)
        if match and UNIT.fullmatch(side[match.end():]) and (value := value_of(match)) is not None:
            return value
    return last_number(text)


def bold_number(text: str) -> float | None:
    """The last bold number: "**7**", "**$7 a day**", "**x = 7**"; no heading ("**Step 2:**", "**2. Add**")."""
    for found in reversed(BOLD.findall(text)):
        part = LEAD.split(written_out(found))[-1].strip()
        match = NUMBER.match(part)
        if match and not HEADING.search(part[match.end():]) and (value := value_of(match)) is not None:
            return value
    return None


def value_of(match: re.Match) -> float | None:
    """The value of a NUMBER that was found; None where it is not finite."""
    number = float(re.sub(r"[, ']", "", match["digits"]) + (f"e{match['e']}" if match["e"] else ""))
    try:
        number /= float(match["divisor"] or 1)
        number = (number + float(match["whole"] or 0)) ** int(match["power"] or 1) * 10.0 ** int(match["ten"] or 0)
    except (ArithmeticError, ValueError):  # 1/0, 10^999, an exponent of 5,000 digits
        return None
    negative = (match["sign"] == "-") != (match["inner"] == "-")
    return (-number if negative else number) if math.isfinite(number) else None
