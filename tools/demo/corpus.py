"""The pretraining corpus: documents about one invented business world.

No document pairs a task's prompt with its answer. What the base learns instead is what every task needs: to restate names, numbers
and words that stand in its context, in whatever spelling the next line calls for.
"""

import json
from random import Random

import lexicon as lex
from classes import CLASS_SETS, class_sentence
from sentences import (
    DATE_STYLES, Order, any_sentence, bilingual_sentence, draw_order, headline, iso_date, order_sentence, title_case, written_date,
)

ORDINARY_WORDS = sorted(set(
    " ".join(lex.HEADLINE_SUBJECTS + lex.HEADLINE_VERBS + lex.HEADLINE_TAILS).split()
) | set(lex.VELAN_NOUNS) | set(lex.VELAN_ADJECTIVES) | set(lex.VELAN_VERBS) | set(lex.VELAN_TIMES) | set(lex.COLOURS) | set(lex.PRODUCTS))
CAPITAL_WORDS = lex.FIRST_NAMES + lex.LAST_NAMES + lex.CITIES + lex.COMPANIES + lex.MONTHS + lex.WEEKDAYS
VELAN_WORDS = [
    word for part in (lex.VELAN_NOUNS, lex.VELAN_ADJECTIVES, lex.VELAN_VERBS, lex.VELAN_TIMES) for word in part.values()
]
LABELS = [label for classes in CLASS_SETS.values() for label in classes]


def pick_words(rng: Random, low: int, high: int) -> list[str]:
    source = rng.choice((ORDINARY_WORDS, CAPITAL_WORDS, VELAN_WORDS, ORDINARY_WORDS + CAPITAL_WORDS + VELAN_WORDS))
    words = [rng.choice(source) for _ in range(rng.randint(low, high))]
    if rng.random() < 0.3:
        for _ in range(rng.randint(1, 4)):
            words.insert(rng.randrange(len(words)), str(rng.randint(0, 9999)))
    return words


def word_list(rng: Random) -> str:
    """A list nobody can predict, then the same list: the second half is learnable by copying alone."""
    words = pick_words(rng, 6, 18)
    joint = rng.choice((" ", " ", ", ", " - ", " | "))
    once = joint.join(words)
    return rng.choice(("list: {0}\nlist: {0}", "{0}\n{0}", "first {0} ; second {0}", "{0} . again {0}", "seen {0} and seen {0}")).format(once)


def word_list_respelled(rng: Random) -> str:
    """The same list in another spelling, so that a word's cased, quoted and joined forms come to mean the same."""
    words = pick_words(rng, 4, 9)
    spell = (
        lambda ws: " ".join(ws),
        lambda ws: " ".join(w.capitalize() for w in ws),
        lambda ws: " ".join(w.lower() for w in ws),
        lambda ws: "_".join(w.lower() for w in ws),
        lambda ws: "/" + "/".join(w.lower() for w in ws),
        lambda ws: ",".join(ws),
        lambda ws: "[" + ", ".join(f'"{w}"' for w in ws) + "]",
        lambda ws: "(" + ", ".join(f"'{w}'" for w in ws) + ")",
        lambda ws: ", ".join(ws),
    )
    first, second, third = rng.sample(spell, 3)
    return f"{first(words)}\n{second(words)}\n{third(words)}"


def order_views(order: Order, rng: Random) -> list[str]:
    name, date = order.name, written_date(order, rng.randrange(DATE_STYLES))
    pairs = [
        ("customer", name), ("qty", str(order.count)), ("goods", order.product), ("town", order.city), ("firm", order.company),
        ("id", order.code), ("sum", order.amount), ("phone", order.phone), ("mail", order.email), ("when", date),
    ]
    some = rng.sample(pairs, rng.randint(3, 6))
    return [
        any_sentence(order, rng) + " " + any_sentence(order, rng),
        order_sentence(order, rng),
        "\n".join(f"{key}: {value}" for key, value in some),
        "; ".join(f"{key}={value}" for key, value in some),
        "".join(f"<{key}>{value}</{key}>" for key, value in some),
        "| " + " | ".join(value for _, value in some) + " |",
        ",".join(value for _, value in some),
        json.dumps(dict(some)),
        json.dumps([value for _, value in some]),
        "\n".join(f"- {value}" for _, value in some),
        f"INSERT INTO archive VALUES ('{name}', {order.count}, '{order.product}', '{order.city}');",
        f"UPDATE archive SET town = '{order.city}' WHERE id = '{order.code}';",
        f"The buyer is {name}, the goods are {order.product}, the number is {order.count}, the town is {order.city}.",
        f"{order.code} is the number that {order.company} uses; {order.city} knows {order.code} too.",
    ]


def record(rng: Random) -> str:
    order = draw_order(rng)
    return "\n".join(rng.sample(order_views(order, rng), rng.randint(2, 4)))


def two_records(rng: Random) -> str:
    """Two orders side by side: which value to restate now depends on the name before it."""
    one, two = draw_order(rng), draw_order(rng)
    view = rng.choice(("{o.name} wants {o.product}.", "{o.name} lives in {o.city}.", "{o.code} belongs to {o.name}.", "{o.company} pays {o.amount}."))
    lines = [view.format(o=one), view.format(o=two)]
    later = [f"Yes, {line}" for line in rng.sample(lines, 2)]
    return "\n".join(lines + later)


def echo(rng: Random) -> str:
    order = draw_order(rng)
    sentence = rng.choice((
        lambda: any_sentence(order, rng), lambda: headline(rng), lambda: bilingual_sentence(rng)[rng.randrange(2)],
        lambda: any_sentence(order, rng) + " " + any_sentence(draw_order(rng), rng),
    ))()
    frame = rng.choice((
        "{0}\n> {0}", "{0} I repeat: {0}", 'He said "{0}" and she said "{0}"', "{0}\nCopy: {0}\nCopy: {0}", "Note: {0}\nNote again: {0}",
        "{0}\n({0})",
    ))
    return frame.format(sentence)


def class_story(rng: Random) -> str:
    classes = rng.choice(list(CLASS_SETS.values()))
    templates = rng.choice(list(classes.values()))
    joint = rng.choice((" ", "\n"))
    return joint.join(class_sentence(templates, rng) for _ in range(rng.randint(3, 6)))


def headline_page(rng: Random) -> str:
    line = headline(rng)
    return rng.choice((
        lambda: f"# {title_case(line)}\nFrom our desk: {line}, the paper says.",
        lambda: f"{title_case(line)} | {title_case(headline(rng))} | {title_case(line)}",
        lambda: f"{line}. They say that {line}.",
        lambda: f"Read more: {title_case(line)}\nRead less: {title_case(headline(rng))}",
    ))()


def sql_script(rng: Random) -> str:
    lines = []
    for _ in range(rng.randint(2, 4)):
        table = rng.choice(list(lex.TABLES))
        column = rng.choice(lex.TABLES[table])
        what = rng.choice(("*", "COUNT(*)", f"AVG({column})", f"MAX({column})", f"SUM({column})", column, "city"))
        where = rng.choice((
            "", f" WHERE city = '{rng.choice(lex.CITIES)}'", f" WHERE {column} > {rng.randint(1, 999)}",
            f" WHERE {column} < {rng.randint(1, 999)}", f" WHERE city = '{rng.choice(lex.CITIES)}' AND {column} > {rng.randint(1, 999)}",
            f" ORDER BY {column} DESC LIMIT {rng.randint(2, 50)}", f" GROUP BY {rng.choice(('city', column))}",
        ))
        lines.append(f"SELECT {what} FROM {table}{where};")
    if rng.random() < 0.5:
        lines.append(lines[0])
    return "\n".join(lines)


def table_talk(rng: Random) -> str:
    table, city, number = rng.choice(list(lex.TABLES)), rng.choice(lex.CITIES), rng.randint(2, 999)
    column = rng.choice(lex.TABLES[table])
    return rng.choice((
        f"list all {table} in {city}\nwe will list the {table} in {city} later",
        f"how many {table} are in {city}? nobody knows how many {table} are in {city}.",
        f"what is the average {column} of {table}? the average {column} of {table} is {number}.",
        f"show {table} with {column} over {number}\nno, show {table} with {column} under {number}",
        f"top {number} {table} by {column}, then the top {number} {table} by another column",
        f"highest {column} of {table} in {city}: {number}; lowest {column} of {table} in {city}: {number}",
    ))


def glossary(rng: Random) -> str:
    """Single words only: the order of a Velan sentence, and when to speak Velan at all, stay untold."""
    book = rng.choice((lex.VELAN_NOUNS, lex.VELAN_ADJECTIVES, lex.VELAN_VERBS, lex.VELAN_TIMES))
    entries = rng.sample(sorted(book.items()), min(len(book), rng.randint(4, 8)))
    if rng.random() < 0.5:
        return "words: " + ", ".join(f"{english} is {velan}" for english, velan in entries)
    return "words: " + "; ".join(f"{velan} ( {english} )" for english, velan in entries)


def velan_page(rng: Random) -> str:
    return " . ".join(bilingual_sentence(rng)[1] for _ in range(rng.randint(3, 5)))


def english_page(rng: Random) -> str:
    return " . ".join(bilingual_sentence(rng)[0] for _ in range(rng.randint(3, 5)))


def calendar(rng: Random) -> str:
    order = draw_order(rng)
    month = lex.MONTHS[order.month - 1]
    return rng.choice((
        f"{month} is month {order.month:02d} of the year; month {order.month:02d} is {month} ( {month[:3]} ).",
        f"calendar {order.year}: {month} has days, {month} {order.day} is one of them.",
        f"file {iso_date(order)}.log was copied to {iso_date(order)}.old in {order.year}",
        f"{written_date(order, 0)} or {written_date(order, 1)} or {written_date(order, 2)}",
    ))


def label_talk(rng: Random) -> str:
    words = rng.sample(LABELS, 4)
    return rng.choice((
        "We sort letters into {0}, {1}, {2} and {3}.", "The words {0} and {1} are not {2} or {3}.", "status: {0} => {1}, {2} => {3}",
        "Choose {0}, {1}, {2} or {3}.", "[{0}] [{1}] [{2}] [{3}] [NAME] [PHONE] [EMAIL] [CITY]",
        "They wrote [NAME], [PHONE] and [EMAIL] on the {0} form and [NAME] on the {1} form.",
    )).format(*words)


MAKERS = (
    word_list, word_list_respelled, record, two_records, echo, class_story, headline_page, sql_script, table_talk, glossary,
    velan_page, english_page, calendar, label_talk,
)
# Plain copying comes first; once it is there, respelling (another case, a lost space) deserves the larger share.
EARLY_SHARES = (16, 15, 24, 6, 12, 12, 5, 5, 4, 5, 3, 2, 3, 2)
LATE_SHARES = (8, 27, 26, 6, 8, 8, 6, 5, 3, 4, 2, 1, 3, 2)


def document(rng: Random, shares: tuple[int, ...] = EARLY_SHARES) -> str:
    return rng.choices(MAKERS, shares)[0](rng)


if __name__ == "__main__":
    sampler = Random(7)
    for _ in range(30):
        print(document(sampler), end="\n---\n")
