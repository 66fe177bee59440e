"""Sentences that belong to a hidden class: a mood, a team, a severity, an urgency.

The corpus strings together sentences of one class without ever naming it, so the base has a reason to tell the classes apart;
the name of the class is what the light adapters add.
"""

from random import Random

import lexicon as lex

SENTIMENT = {
    "positive": (
        "I love these {product}.", "The {product} work very well.", "Great quality and a fair price.",
        "These are the best {product} I ever had.", "My {product} arrived early and look beautiful.",
        "I am very happy with the {product}.", "Excellent service from {company}.", "I would buy the {product} again.",
        "The {product} feel strong and well made.", "Everyone in {city} likes the {product}.",
    ),
    "negative": (
        "I hate these {product}.", "The {product} broke after two days.", "Poor quality and a high price.",
        "These are the worst {product} I ever had.", "My {product} arrived late and look ugly.",
        "I am very unhappy with the {product}.", "Terrible service from {company}.", "I want my money back for the {product}.",
        "The {product} feel weak and badly made.", "Nobody in {city} likes the {product}.",
    ),
    "neutral": (
        "The {product} are average.", "The {product} do what they should, no more.", "The {product} came in a plain box.",
        "I bought the {product} for my office in {city}.", "The {product} are neither good nor bad.",
        "I have used the {product} for a week.", "The {product} look like the picture.", "{company} sent the {product} in the usual time.",
        "The {product} are acceptable for the price.", "I have no opinion on the {product} yet.",
    ),
}
TEAM = {
    "billing": (
        "I was charged twice for the {product}.", "My invoice shows the wrong amount.", "Why did the card payment fail?",
        "Please correct the tax on my invoice.", "I need a receipt for the {product}.", "The monthly fee went up, why?",
    ),
    "shipping": (
        "Where is my parcel with the {product}?", "The delivery to {city} is late.", "Can the courier come on {weekday}?",
        "The tracking page shows no parcel.", "Please send the {product} to my address in {city}.", "The driver left the parcel in the rain.",
    ),
    "account": (
        "I forgot my password.", "I cannot log in to my profile.", "Please change my email address.",
        "How do I delete my profile?", "The login code never reaches my phone.", "My user name is spelled wrong.",
    ),
    "returns": (
        "I want to send the {product} back.", "How do I return the {product}?", "The {product} do not fit, I want a refund.",
        "Please exchange the {product} for {colour} ones.", "Where is the return label for the {product}?",
        "The {product} came damaged, please take them back.",
    ),
    "sales": (
        "Do you have {colour} {product} in stock?", "What is the price of forty {product}?", "Do you offer a discount on {product}?",
        "I would like a quote for the {product}.", "Which {product} do you recommend for an office?",
        "Can {company} buy {product} in bulk?",
    ),
}
SEVERITY = {
    "info": (
        "service started on node {n}", "user session {n} opened", "backup of node {n} completed", "cache refreshed in {n} ms",
        "worker {n} joined the pool", "scheduled job {n} finished",
    ),
    "warning": (
        "disk usage at {n} percent on node {m}", "slow query took {n} seconds", "retrying request {n} to node {m}",
        "certificate expires in {n} days", "queue length {n} above the limit", "memory pressure on node {n}",
    ),
    "error": (
        "connection to node {n} refused", "failed to write block {n}", "request {n} timed out", "invalid token for session {n}",
        "could not parse message {n}", "worker {n} crashed and was replaced",
    ),
    "critical": (
        "data loss on volume {n}", "all replicas of shard {n} are down", "kernel panic on node {n}", "power failure in rack {n}",
        "master node {n} unreachable, cluster halted", "fire alarm in server room {n}",
    ),
}
URGENCY = {
    "high": (
        "The {product} line stopped, we need help right now.", "Please fix the {product} order as soon as possible.",
        "This cannot wait, call {first} at once.", "Our {city} shop is down, act immediately.",
        "Emergency in {city}: no {product} left.", "{first} must have the {product} within the hour.",
    ),
    "medium": (
        "Please look at the {product} order this week.", "{first} needs an answer by {weekday}.",
        "Could you check the {city} numbers in the next days?", "We should order more {product} soon.",
        "Please plan a visit to {city} for next week.", "{first} expects the {product} in a few days.",
    ),
    "low": (
        "Whenever you have time, tidy the {product} list.", "No hurry, but the {city} sign is faded.",
        "One day we could paint the {city} office.", "If you are bored, sort the {product} photos.",
        "There is no deadline for the {product} survey.", "{first} can wait for the {product} until next year.",
    ),
}
CLASS_SETS = {"sentiment": SENTIMENT, "team": TEAM, "severity": SEVERITY, "urgency": URGENCY}


# Without an opener, a template that has no slot would have one single spelling, and that one could not be in both sides of a split.
OPENERS = ("", "", "{first} says: ", "From {city}: ", "Dear {company}, ", "Hello, {first} here. ", "On {weekday}: ")


def class_sentence(templates: tuple[str, ...], rng: Random) -> str:
    is_log_line = templates in SEVERITY.values()
    template = rng.choice(templates)
    return (template if is_log_line else rng.choice(OPENERS) + template).format(
        product=rng.choice(lex.PRODUCTS), city=rng.choice(lex.CITIES), company=rng.choice(lex.COMPANIES),
        colour=rng.choice(lex.COLOURS), weekday=rng.choice(lex.WEEKDAYS), first=rng.choice(lex.FIRST_NAMES),
        n=rng.randint(2, 99), m=rng.randint(1, 40),
    )
