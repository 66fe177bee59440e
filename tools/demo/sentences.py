"""Sentences of the demo's world: the corpus restates them, the tasks put questions to them."""

from dataclasses import dataclass
from random import Random

import lexicon as lex


@dataclass(frozen=True)
class Order:
    """The facts that most sentences are about; one draw feeds every format a document shows them in."""

    first: str
    last: str
    count: int
    product: str
    city: str
    company: str
    code: str
    amount: str
    day: int
    month: int
    year: int
    phone: str

    @property
    def name(self) -> str:
        return f"{self.first} {self.last}"

    @property
    def email(self) -> str:
        return f"{self.first.lower()}.{self.last.lower()}@{self.company.lower()}.example"


def draw_order(rng: Random) -> Order:
    return Order(
        first=rng.choice(lex.FIRST_NAMES),
        last=rng.choice(lex.LAST_NAMES),
        count=rng.randint(2, 99),
        product=rng.choice(lex.PRODUCTS),
        city=rng.choice(lex.CITIES),
        company=rng.choice(lex.COMPANIES),
        code=f"{rng.choice(lex.CODE_PREFIXES)}-{rng.randint(1000, 9999)}",
        amount=f"{rng.randint(10, 9999)}.{rng.randint(0, 99):02d}",
        day=rng.randint(1, 28),
        month=rng.randint(1, 12),
        year=rng.randint(2015, 2029),
        phone=f"555-{rng.randint(0, 9999):04d}",
    )


DATE_STYLES = 4


def written_date(order: Order, style: int) -> str:
    month = lex.MONTHS[order.month - 1]
    return (
        f"{order.day} {month} {order.year}",
        f"{month} {order.day}, {order.year}",
        f"{order.day:02d}/{order.month:02d}/{order.year}",
        f"{order.day}. {month[:3]} {order.year}",
    )[style]


def iso_date(order: Order) -> str:
    return f"{order.year}-{order.month:02d}-{order.day:02d}"


ORDER_TEMPLATES = (
    "{name} ordered {count} {product} for {city}.",
    "Please send {count} {product} to {name} in {city}.",
    "{count} {product} for {name}, to be shipped to {city}.",
    "{name} from {city} would like {count} {product}.",
    "We sold {count} {product} to {name} of {city}.",
    "In {city}, {name} asked for {count} {product}.",
)
DATED_TEMPLATES = (
    "The meeting with {name} moved to {date}.",
    "{company} will deliver the {product} on {date}.",
    "The invoice is due on {date} in {city}.",
    "{name} signed the contract on {date}.",
    "On {date} the {city} office closes early.",
    "We expect {count} {product} by {date}.",
)
CODED_TEMPLATES = (
    "Ticket {code} from {name} is still open.",
    "{name} asked about {code} again.",
    "The {product} of {code} left {city} this morning.",
    "Please check {code} before you call {company}.",
    "{company} paid {amount} for {code}.",
    "We could not find {code} in {city}.",
)
CONTACT_TEMPLATES = (
    "Call {name} at {phone} about the {product}.",
    "Write to {email} or call {phone}.",
    "{name} in {city} waits for {count} {product}.",
    "Send the {product} to {name} and a copy to {email}.",
    "The contact at {company} is {name}, phone {phone}.",
    "{name} paid {amount} for the {product} in {city}.",
    "Our driver met {name} near the {company} office.",
    "Please ask {email} for the {product} list.",
)
# Every one has a city and someone who is there.
PLACED_TEMPLATES = (
    "{name} in {city} waits for {count} {product}.",
    "In {city}, {name} paid {amount} for the {product}.",
    "Call {name} in {city} at {phone}.",
    "Send the {product} to {name} in {city} and a copy to {email}.",
    "The {city} contact is {name}, phone {phone}.",
    "Our driver met {name} near the {city} office.",
)
COLLEAGUE_TEMPLATES = (
    "{name} works at {company}.",
    "The contact at {company} is {name}.",
    "{company} has a new clerk, {name}.",
    "{name} of {company} wants the {product}.",
    "Please write to {name} at {company}.",
    "We met {name} from {company} in {city}.",
)


def fill(template: str, order: Order, rng: Random) -> str:
    return template.format(
        name=order.name, count=order.count, product=order.product, city=order.city, company=order.company,
        code=order.code, amount=order.amount, phone=order.phone, email=order.email,
        date=written_date(order, rng.randrange(DATE_STYLES)),
    )


def order_sentence(order: Order, rng: Random) -> str:
    return fill(rng.choice(ORDER_TEMPLATES), order, rng)


def any_sentence(order: Order, rng: Random) -> str:
    group = rng.choice((ORDER_TEMPLATES, DATED_TEMPLATES, CODED_TEMPLATES, CONTACT_TEMPLATES))
    return fill(rng.choice(group), order, rng)


def headline(rng: Random) -> str:
    """Lower case throughout, as a hasty editor types it."""
    words = f"{rng.choice(lex.HEADLINE_SUBJECTS)} {rng.choice(lex.HEADLINE_VERBS)}"
    place = f" in {rng.choice(lex.CITIES).lower()}" if rng.random() < 0.5 else ""
    return f"{words}{place} {rng.choice(lex.HEADLINE_TAILS)}"


def title_case(line: str) -> str:
    words = line.split(" ")
    return " ".join(
        word if position and word in lex.SMALL_WORDS else word[:1].upper() + word[1:]
        for position, word in enumerate(words)
    )


def bilingual_sentence(rng: Random) -> tuple[str, str]:
    """One sentence in English and in Velan, as (english, velan)."""
    def phrase() -> tuple[str, str]:
        noun = rng.choice(list(lex.VELAN_NOUNS))
        if rng.random() < 0.4:
            return f"the {noun}", f"{lex.VELAN_THE} {lex.VELAN_NOUNS[noun]}"
        adjective = rng.choice(list(lex.VELAN_ADJECTIVES))
        return f"the {adjective} {noun}", f"{lex.VELAN_THE} {lex.VELAN_NOUNS[noun]} {lex.VELAN_ADJECTIVES[adjective]}"

    subject, subject_velan = phrase()
    target, target_velan = phrase()
    verb = rng.choice(list(lex.VELAN_VERBS))
    english, velan = f"{subject} {verb} {target}", f"{subject_velan} {lex.VELAN_VERBS[verb]} {target_velan}"
    if rng.random() < 0.5:
        time = rng.choice(list(lex.VELAN_TIMES))
        english, velan = f"{english} {time}", f"{velan} {lex.VELAN_TIMES[time]}"
    return english, velan
