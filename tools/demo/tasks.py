"""The tasks that the adapters learn: raw text in, a neutral separator, a short answer out."""

import hashlib
import json
from dataclasses import dataclass
from random import Random
from typing import Callable

import lexicon as lex
from classes import SENTIMENT, SEVERITY, TEAM, URGENCY, class_sentence
from sentences import (
    CODED_TEMPLATES, COLLEAGUE_TEMPLATES, CONTACT_TEMPLATES, DATED_TEMPLATES, PLACED_TEMPLATES, Order, bilingual_sentence, draw_order,
    fill, headline, iso_date, order_sentence, title_case,
)

SEPARATOR = "\n=>"
TRAINING, DEVELOPMENT, HELD_OUT = "training", "development", "held-out"
SIDES = [HELD_OUT, DEVELOPMENT] + [TRAINING] * 6


@dataclass(frozen=True)
class Example:
    prompt: str
    answer: str
    entities: str
    """What decides the split: examples about the same entities all fall on the same side."""

    @property
    def side(self) -> str:
        return SIDES[hashlib.sha256(self.entities.encode()).digest()[0] % len(SIDES)]


def example(text: str, answer: str, *entities: object) -> Example:
    return Example(text + SEPARATOR, answer, "/".join(str(entity) for entity in entities) or text)


@dataclass(frozen=True)
class Task:
    title: str
    draw: Callable[[Random], Example]
    labels: tuple[str, ...] = ()
    """Of a task whose answers are labels of a classification head: they are scored instead of said, and have this order."""


def extract_json(rng: Random) -> Example:
    order = draw_order(rng)
    fields = {"name": order.name, "item": order.product, "count": order.count, "city": order.city}
    return example(order_sentence(order, rng), json.dumps(fields), order.name)


def without_person(text: str, order: Order) -> str:
    return text.replace(order.name, "[NAME]").replace(order.phone, "[PHONE]").replace(order.email, "[EMAIL]")


def without_city(text: str, order: Order) -> str:
    return text.replace(order.city, "[CITY]")


def redact(rng: Random) -> Example:
    order = draw_order(rng)
    text = fill(rng.choice(CONTACT_TEMPLATES), order, rng)
    return example(text, without_person(text, order), order.name)


def redact_city(rng: Random) -> Example:
    order = draw_order(rng)
    text = fill(rng.choice(PLACED_TEMPLATES), order, rng)
    return example(text, without_city(text, order), order.name)


def redact_both(rng: Random) -> Example:
    order = draw_order(rng)
    text = fill(rng.choice(PLACED_TEMPLATES), order, rng)
    return example(text, without_city(without_person(text, order), order), order.name)


def file_card(rng: Random) -> Example:
    order = draw_order(rng)
    return example(order_sentence(order, rng), f"{order.last}, {order.first}: {order.count} {order.product}", order.name)


def csv_line(rng: Random) -> Example:
    order = draw_order(rng)
    return example(order_sentence(order, rng), f"{order.name},{order.count},{order.product},{order.city}", order.name)


def mail_address(rng: Random) -> Example:
    order = draw_order(rng)
    return example(fill(rng.choice(COLLEAGUE_TEMPLATES), order, rng), order.email, order.name)


def text_to_sql(rng: Random) -> Example:
    table, city, number = rng.choice(list(lex.TABLES)), rng.choice(lex.CITIES), rng.randint(2, 999)
    column = rng.choice(lex.TABLES[table])
    text, sql = rng.choice((
        (f"list all {table} in {city}", f"SELECT * FROM {table} WHERE city = '{city}';"),
        (f"how many {table} are in {city}?", f"SELECT COUNT(*) FROM {table} WHERE city = '{city}';"),
        (f"what is the average {column} of {table} in {city}?", f"SELECT AVG({column}) FROM {table} WHERE city = '{city}';"),
        (f"show {table} with {column} over {number}", f"SELECT * FROM {table} WHERE {column} > {number};"),
        (f"show {table} in {city} with {column} under {number}", f"SELECT * FROM {table} WHERE city = '{city}' AND {column} < {number};"),
        (f"top {number} {table} by {column}", f"SELECT * FROM {table} ORDER BY {column} DESC LIMIT {number};"),
        (f"highest {column} of {table} in {city}", f"SELECT MAX({column}) FROM {table} WHERE city = '{city}';"),
    ))
    return example(text, sql)


def normalise_date(rng: Random) -> Example:
    order = draw_order(rng)
    return example(fill(rng.choice(DATED_TEMPLATES), order, rng), iso_date(order), order.day, order.month, order.year)


def find_code(rng: Random) -> Example:
    order = draw_order(rng)
    return example(fill(rng.choice(CODED_TEMPLATES), order, rng), order.code, order.code)


def translate(rng: Random) -> Example:
    return example(*bilingual_sentence(rng))


def capitalise(rng: Random) -> Example:
    line = headline(rng)
    return example(line, title_case(line))


def slug(rng: Random) -> Example:
    line = headline(rng)
    return example(line, line.replace(" ", "-"))


def classify(classes: dict[str, tuple[str, ...]]) -> Callable[[Random], Example]:
    def draw(rng: Random) -> Example:
        label = rng.choice(list(classes))
        return example(class_sentence(classes[label], rng), label)
    return draw


def any_order(rng: Random, templates: tuple[str, ...]) -> str:
    return fill(rng.choice(templates), draw_order(rng), rng)


KINDS_OF_TEXT = {
    "order": lambda rng: order_sentence(draw_order(rng), rng),
    "appointment": lambda rng: any_order(rng, DATED_TEMPLATES),
    "ticket": lambda rng: any_order(rng, CODED_TEMPLATES),
    "review": lambda rng: class_sentence(rng.choice(list(SENTIMENT.values())), rng),
    "log": lambda rng: class_sentence(rng.choice(list(SEVERITY.values())), rng),
    "headline": headline,
}


def kind_of_text(rng: Random) -> Example:
    label = rng.choice(list(KINDS_OF_TEXT))
    return example(KINDS_OF_TEXT[label](rng), label)


TASKS = {
    "json-extract": Task("Pull the buyer, item, count and city of an order into JSON", extract_json),
    "redact": Task("Replace names, phone numbers and mail addresses by placeholders", redact),
    "text-to-sql": Task("Turn a question into SQL", text_to_sql),
    "iso-date": Task("Find the date and write it as YYYY-MM-DD", normalise_date),
    "find-code": Task("Find the reference number", find_code),
    "translate-velan": Task("Translate English into Velan, an invented language", translate),
    "headline": Task("Set a headline in title case", capitalise),
    "slug": Task("Make a URL slug of a headline", slug),
    "sentiment": Task("Tell whether a review is positive, negative or neutral", classify(SENTIMENT)),
    "route": Task("Route a customer's message to the right team", classify(TEAM)),
    "severity": Task("Tell the severity of a log line", classify(SEVERITY)),
    "urgency": Task("Tell how urgent a message is", classify(URGENCY)),
    "card-index": Task("File an order under the buyer's last name", file_card),
    "csv-line": Task("Make a line of CSV of an order", csv_line),
    "mail-address": Task("Make a mail address of a name and a company", mail_address),
    "text-kind": Task("Tell what kind of text it is", kind_of_text, tuple(KINDS_OF_TEXT)),
    "no-city": Task("Replace the city by a placeholder", redact_city),
    "redact+no-city": Task("Replace names, numbers, addresses and the city by placeholders", redact_both),
}


def split(task: Task, seed: int, side: str):
    """Endless examples of one side of the split."""
    rng = Random(seed)
    while True:
        drawn = task.draw(rng)
        if drawn.side == side:
            yield drawn


if __name__ == "__main__":
    for name, task in TASKS.items():
        stream = split(task, seed=1, side=TRAINING)
        for _ in range(3):
            print(name, "|", next(stream))
