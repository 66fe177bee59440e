"""The words of the demo's world.

The lists are small on purpose: nearly every word becomes one token, so a model of a few million parameters spends its
capacity on copying and transforming instead of on spelling.
"""

FIRST_NAMES = (
    "Anna Boris Clara David Elena Felix Greta Henry Irene Jonas Karin Leon Maria Nils Olga Peter Rosa Simon Tessa Victor "
    "Wanda Yara Adam Bella Conrad Dora Emil Flora Gustav Helga Ivan Julia Klaus Linda Martin Nadia Oscar Paula Robert Sara "
    "Thomas Ursula Walter Alice Bruno Carla Daniel Emma Frank Grace"
).split()
LAST_NAMES = (
    "Berg Castro Dahl Egger Fischer Garcia Hansen Ivanov Jensen Keller Lopez Meyer Novak Olsen Petrov Quinn Rossi Santos "
    "Turner Ulrich Vogel Weber Young Zeller Adler Brandt Costa Diaz Evans Franke Gruber Hill Jung Klein Lang Moreno Nolan "
    "Ortega Parker Reed Silva Torres Vega Walker Becker Carter Duarte Fuchs Graham Hoffman"
).split()
CITIES = (
    "Oslo Berlin Madrid Paris Vienna Lisbon Prague Dublin Rome Athens Zurich Geneva Munich Hamburg Milan Turin Porto Seville "
    "Warsaw Krakow Boston Denver Austin Dallas Seattle Chicago Toronto Sydney Tokyo Kyoto Lima Bogota Cairo Delhi Nairobi Dakar"
).split()
PRODUCTS = (
    "lamps chairs tables desks phones cables screens printers cameras bottles boxes bags shelves clocks mugs pens keyboards "
    "speakers batteries chargers helmets jackets gloves shoes tents bikes drills pumps filters valves sensors routers tiles "
    "doors windows mirrors"
).split()
COMPANIES = (
    "Nordwind Solara Brightly Kestrel Lumen Arcadia Meridian Halcyon Verdant Ironclad Pinnacle Harbor Juniper Cobalt Summit Orchard"
).split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday".split()
CODE_PREFIXES = "INV ORD TKT REF BUG PO RMA DOC".split()
COLOURS = "red blue green black white grey brown yellow".split()

TABLES = {
    "orders": ("total", "weight"),
    "invoices": ("amount", "tax"),
    "customers": ("age", "credit"),
    "shipments": ("weight", "cost"),
    "products": ("price", "stock"),
    "employees": ("salary", "age"),
}

SMALL_WORDS = "in of to for and as on at by with the a".split()
HEADLINE_SUBJECTS = (
    "new office|local bank|small bakery|city council|old factory|young team|big retailer|train service|power company|river bridge|"
    "art museum|water project|airline staff|market leader|phone maker|school board|farm group|software firm|harbor crane|union chief"
).split("|")
HEADLINE_VERBS = (
    "opens|closes|wins award|cuts prices|raises wages|plans move|hires workers|reports profit|delays launch|signs deal|faces strike|"
    "seeks help|doubles output|sells shares|builds tower|tests robots"
).split("|")
HEADLINE_TAILS = (
    "as sales rise|as costs fall|for the winter|by the river|with a new plan|in the north|at record speed|on strong demand|"
    "to save energy|after long talks|for young families|with local partners|in the spring|of the year"
).split("|")

# The second language, Velan: every word is invented; adjectives follow their noun, and "the" is "ma".
VELAN_NOUNS = dict(zip(
    "shop house farmer teacher bird dog river bridge market ship child doctor baker garden train road".split(),
    "kelo dorin fameth solun vira guno meshal tobrik zantar navel pitu ledran bakusi floren rakto wenda".split(),
))
VELAN_ADJECTIVES = dict(zip(
    "small big old young red quiet happy cold bright slow".split(),
    "mirin gorath venu talis rosha sulem jovik kaldun lumet peshka".split(),
))
VELAN_VERBS = dict(zip(
    "sees helps finds likes follows visits paints guards calls leaves".split(),
    "oriva hemta finuro belka sekuda vistal pindor garuma kolesh libato".split(),
))
VELAN_TIMES = dict(zip(
    "today tomorrow often never again now".split(),
    "hodeta morave ofiru nemis ranuka zeth".split(),
))
VELAN_THE = "ma"
