"""The tiny task: word problems, answers and worked solutions made here, so that a demo needs no download.

A problem starts with a two-digit number and adds or takes away four or five single digits, never leaving 10..59. The
worked solution has a line a step and ends with the answer; the grader says what the first wrong line should be. The
tokenizer knows exactly these words (digits single, spaces part of the token), so text and ids map one to one. Fewer
steps and smaller numbers make an easier task with the same words.

Left out: other operations, larger numbers, and every way of writing a right solution differently. The task is to be
learnt from nothing in a minute on two cores, and a minute's worth of training less must leave something to distil.
"""
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.opd.core.records import Prompt
from tasks.opd.core.seeds import derive_seed

NAMES = """Ada Adam Alan Alba Alex Amir Amy Ana Andy Anna Anton Arno Ava Axel Bea Ben Beth Bo Boris Cara Carl Cleo Cora
Dan Dana Dario Dean Dora Eda Edgar Ella Elsa Emil Emma Enzo Eric Erin Eva Ewan Fay Felix Finn Flora Frank Fred Gail Gary
Gemma Gina Greta Gus Hal Hana Hank Hans Heidi Hugo Ida Igor Ines Ira Iris Ivan Jack Jade Jan Jane Joan Joel Jon Josef
Judy Jules June Kai Karl Kate Kim Kira Kurt Lara Lars Lea Lena Leo Lia Lily Lisa Liv Lou Luca Lucy Luis Luna Mara Marc
Maria Max Maya Mia Mila Milo Mina Moe Nadia Nell Nick Nico Nina Noah Nora Olga Oleg Omar Otto Owen Pam Paul Pete Pia
Rami Remy Rita Rob Rosa Ruth Sam Sara Theo Tim Tina Tom Uma Vera Will Yuri Zoe""".split()
THINGS = """acorns apples bags balls bananas beads beans beets bells berries bikes birds boats bolts bones books bottles
bowls boxes bricks brooms brushes buckets buns buttons cakes candles caps cards carrots carts chairs cherries chips
clocks coats coins combs cookies corks cows crates crayons cubes cups dates dice discs dolls doors drums ducks eggs fans
feathers figs files fish flags flowers flutes forks frames frogs gems glasses gloves goats grapes hammers hats hens
herbs hoops horns horses jars jewels jugs keys kites knives knots lamps leaves lemons letters lids limes locks magnets
mangos maps marbles masks mats melons mugs mushrooms nails needles nets notes nuts olives onions oranges pans papers
peaches pears peas pebbles pencils pens peppers photos pies pillows pins pipes plants plates plums poems pots puzzles
quills radios rings robots ropes roses rulers sacks scarves seeds shells shirts shoes skates socks songs spades spoons
stamps stars sticks stones straws sweets tables tapes tents tickets tiles tools tops towels toys trees tulips vases
wheels wires""".split()
PLACES = """Athens Austin Berlin Bern Bonn Boston Cairo Chad Chile China Cork Cuba Dallas Delhi Denver Dover Dublin
Egypt Essen Fiji Genoa Ghana Graz Haiti Iowa Italy Japan Kenya Kiel Kyoto Laos Leeds Lima Linz London Lyon Madrid Malta
Miami Milan Nepal Nice Norway Ohio Oman Osaka Oslo Oxford Paris Peru Pisa Porto Prague Quito Riga Rome Samoa Seoul Siena
Spain Sydney Texas Togo Tokyo Troy Tulsa Turin Utah Venice Vienna Wales York Zurich""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday".split()
GAINS = "adds borrows brings buys collects earns finds gains gets makes picks wins".split()
LOSSES = "breaks burns drops eats gives hides loses lends misses sells spends uses".split()
OTHER = """has have in then how many are is the now line answer not no missing should be a an and of to with what
question solution here correct wrong right your worked problem step by check against sure you understand why it solve
yourself own words this that use using again first try feedback""".split()
STARTS = """line answer How Then Here The This Now Question Solution Answer Problem Correct Think What Solve Use
Make Feedback Try Your""".split()
LOWEST, HIGHEST = 10, 59          # of every running value: two digits, few enough sums to learn in a minute
MARKS = ". , ? : + - = !".split()
SPECIAL = ["<|pad|>", "<|end|>", "<|unk|>", "<|user|>", "<|assistant|>", "<|system|>"]
PAD, END, UNKNOWN = SPECIAL[:3]
PIECES = r" ?[A-Za-z]+| ?\d|\n| ?[^\sA-Za-z\d]|\s"
TEMPLATE = ("{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
            "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
LINE = re.compile(r"line (\d+):.*?(\d+) ([+-]) (\d+) = (\d+)\s*$")
ANSWER = re.compile(r"^answer: (\d+)\s*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One word problem with its truth."""
    text: str
    start: int                          # two digits
    steps: list[int]                    # signed single digits, none zero
    verbs: list[str]                    # one a step

    @property
    def values(self) -> list[int]:
        """The running value after each step."""
        return [self.start + sum(self.steps[:i + 1]) for i in range(len(self.steps))]

    @property
    def answer(self) -> str:
        return str(self.values[-1])

    @property
    def solution(self) -> str:
        """The worked solution: a line a step, then the answer."""
        lines, before = [], self.start
        for i, (step, verb, after) in enumerate(zip(self.steps, self.verbs, self.values)):
            lines.append(f"line {i + 1}: {DAYS[i]} {verb} {abs(step)}, {before} {sign(step)} {abs(step)} = {after}")
            before = after
        return "\n".join([*lines, f"answer: {self.answer}"])

    @property
    def domain(self) -> str:
        """How many steps it has, as a word: experts know one or the other."""
        return "none one two three four five".split()[len(self.steps)]

    @property
    def entry(self) -> dict:
        """What `grade` needs beside the answer."""
        return {"start": self.start, "steps": self.steps}


def sign(step: int) -> str:
    return "+" if step > 0 else "-"


def problem(index: int, seed: int = 0, num_steps: int = 0, highest: int = HIGHEST, largest: int = 9,
            question_first: bool = False) -> Problem:
    """Problem `index` of the endless list that belongs to `seed`: the same today and tomorrow, on every machine.

    It has four or five steps, or `num_steps` when that is given; no step is above `largest`, no value outside
    LOWEST..`highest`. The question stands last in the text, or first.
    """
    rng = random.Random(derive_seed("tiny", seed, index))
    start, steps = rng.randint(LOWEST, highest), []
    value = start
    drawn = rng.choice([4, 5])
    for _ in range(num_steps or drawn):
        options = [s * d for s in (1, -1) for d in range(1, largest + 1) if LOWEST <= value + s * d <= highest]
        steps.append(rng.choice(options))
        value += steps[-1]
    verbs = [rng.choice(GAINS if step > 0 else LOSSES) for step in steps]
    name, thing, place = rng.choice(NAMES), rng.choice(THINGS), rng.choice(PLACES)
    story = ", ".join(f"{day} {verb} {abs(step)}" for day, verb, step in zip(DAYS, verbs, steps))
    told, asked = f"{name} in {place} has {start} {thing}. {story}.", f"How many {thing}?"
    text = f"{asked} {told}" if question_first else f"{told} {asked}"
    return Problem(text=text, start=start, steps=steps, verbs=verbs)


def grade(prompt: Prompt, completion: str) -> tuple[float, str | None]:
    """Reward 1 when the last `answer:` line is right, else 0; feedback names the first wrong line, if any."""
    found = ANSWER.findall(completion)
    reward = float(bool(found) and found[-1] == prompt.answer)
    wrong = first_wrong_line(json.loads(prompt.entry), completion)
    if wrong or reward:
        return reward, wrong
    return reward, f"the answer is {prompt.answer}" + (f", not {found[-1]}" if found else "")


def first_wrong_line(entry: dict, completion: str) -> str | None:
    """What the first wrong line should say, for example "line 3: 12 + 7 is 19"; None when every line is right."""
    lines, value = completion.split("\n"), entry["start"]
    for i, step in enumerate(entry["steps"]):
        after = value + step
        truth = f"line {i + 1}: {value} {sign(step)} {abs(step)} is {after}"
        match = LINE.match(lines[i]) if i < len(lines) else None
        if not match or match.groups() != (str(i + 1), str(value), sign(step), str(abs(step)), str(after)):
            return truth
        value = after
    return None


def vocabulary(further: Sequence[str] = ()) -> list[str]:
    """Every piece, special tokens first: 20 digit pieces (with and without space), marks, and the words.

    `further` words stand last, with and without a space before them.
    """
    spaced = [*NAMES, *THINGS, *PLACES, *DAYS, *GAINS, *LOSSES, *OTHER]
    plain = [*NAMES, *STARTS]
    digits = [space + str(d) for space in ("", " ") for d in range(10)]
    marks = [space + mark for space in ("", " ") for mark in MARKS]
    return list(dict.fromkeys([*SPECIAL, *digits, *marks, "\n", " ", *(" " + w for w in [*spaced, *STARTS]), *plain,
                               *(space + word for word in further for space in (" ", ""))]))


def build_tokenizer(folder: Path | None = None, further: Sequence[str] = ()):
    """The task's tokenizer (transformers, fast, with a chat template), with `further` words; saved into `folder`.

    decode(encode(text)) == text for every text made of the vocabulary; anything else becomes `<|unk|>`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(vocabulary(further))}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=END, unk_token=UNKNOWN,
                                        clean_up_tokenization_spaces=False, chat_template=TEMPLATE)
    if folder is not None:
        tokenizer.save_pretrained(folder)
    return tokenizer


def new_model(tokenizer, *, seed: int, layers: int, hidden: int = 128, context_tokens: int = 512):
    """An untrained Llama for `tokenizer`: heads of 32, tied embeddings; every number in it derives from `seed`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 32, num_key_value_heads=hidden // 32, max_position_embeddings=context_tokens,
        tie_word_embeddings=True, initializer_range=0.05, bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
