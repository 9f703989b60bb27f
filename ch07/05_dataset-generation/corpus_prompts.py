"""Prompts for the generated corpus: eight kinds of text, built from lists of people, places, things, events and topics.

A small model that is asked the same question twice answers nearly the same. So each document gets a prompt of its own: a kind
of text, a few random choices, and the first words of the answer, which the model only continues. The choices depend on the
seed and on the document's number, never on what was written before.
"""

import random
from dataclasses import dataclass

PEOPLE = (
    "a retired postman|a shy violin teacher|a young baker|a girl who collects maps|two brothers|a bus driver|a night nurse|"
    "a boy with a kite|an old gardener|a student of birds|a clumsy waiter|a bridge painter|a grandmother|a new librarian|"
    "a tired farmer|a clock mender|a swimming coach|a street sweeper|a traveling tailor|a mountain guide|a potter|a piano tuner|"
    "three cousins|a train conductor|a beekeeper|a school cook|a quiet carpenter|a market seller|a stubborn goat herder|"
    "a weather reporter|a puppet maker|a hotel cleaner|a boat builder|a window washer|a math teacher|a dog walker|a young nurse|"
    "a chess player|a museum guard|a lost tourist|a widow|a circus cook|an honest thief|a village doctor|a sleepy guard|"
    "a mayor|a shepherd|a painter of signs|a girl from the city|a proud rooster|a small gray mouse|a curious fox|a lonely bear"
).split("|")
NAMES = (
    "Ada Ben Carla Dmitri Elena Farid Greta Hugo Ines Jonas Kemal Lena Marta Nico Olga Pavel Rosa Samir Tilda Uma Viktor Wanda "
    "Yusuf Zora Anton Bruno Clara Dora Emil Frida Georg Hanna Ivan Judith Karl Lydia Milo Nina Omar Petra Ruben Sofia Tomas Vera"
).split()
PLACES = (
    "a village by a lake|a crowded train station|a bakery at dawn|the top floor of an old hotel|a school yard|a dry valley|"
    "a town with one bridge|a forest in autumn|a night market|a small airport|an island of sheep|a library in winter|a bus depot|"
    "a garden behind a hospital|a mountain hut|a noisy kitchen|a river with many boats|an empty theater|a rooftop in the city|"
    "a farm near the border|a desert road|a music shop|a harbor in fog|a museum after closing time|a tent in the rain|"
    "a street of tailors|an apple orchard|a barber shop|a snowy pass|a castle that needs repairs|a laundry|a toy workshop|"
    "a quiet office|a public swimming pool|a camp by the sea|a windmill|a tea house|an underground parking lot|a vineyard|"
    "a cave with blue stones|a playground|a courthouse|a small zoo|a stable|a post office in the hills|a ferry|a salt mine"
).split("|")
THINGS = (
    "a broken umbrella|a letter without a name|a silver key|a loaf of bread|a red bicycle|an old radio|a box of buttons|"
    "a pair of muddy boots|a wooden spoon|a map with a hole|a paper boat|a rusty bell|a jar of honey|a lost glove|a blue coat|"
    "a clay pot|a torn photograph|a bag of seeds|a pocket watch|a talking parrot|a yellow scarf|a cracked mirror|a train ticket|"
    "a music box|a heavy suitcase|a ladder|a lantern|a coin from far away|a basket of eggs|a drum|a recipe book|a painted stone|"
    "a kite|a telescope|a stolen cake|a feather|a chess piece|a cart with one wheel|a carpet|a bottle with a message|a pencil|"
    "a ball of wool|a puppy|a hat that is too big|a set of tools|a wet newspaper|a bunch of carrots|a whistle|a snow globe"
).split("|")
EVENTS = (
    "a storm cuts off the road|a stranger asks for help|something valuable disappears|a promise is broken|the lights go out|"
    "an old friend returns|a contest is held|the well runs dry|a mistake turns out well|a secret is found|a child gets lost|"
    "two neighbors quarrel|a machine stops working|the wrong parcel arrives|an animal escapes|a festival is in danger|"
    "a wall has to be built|someone learns to swim|a lie grows too big|a long journey begins|a gift is refused|a debt is paid|"
    "a song is remembered|a shop is about to close|the harvest is late|a door will not open|somebody tells the truth|"
    "a bet is made|a present is shared|a fear is overcome|the river rises|nobody believes the news|a bridge is repaired|"
    "an apology comes late|a team loses and learns|a plan fails twice|a wish comes true in a strange way|a name is forgotten"
).split("|")
MOODS = "funny|sad|calm|thrilling|mysterious|warm|strange|hopeful|serious|cheerful".split("|")
TOPICS = (
    "why the sky gets dark|how bread rises|why ice floats|how a bicycle stays up|where rain comes from|how bees find flowers|"
    "what a library is for|why leaves change color|how a candle burns|why we sleep|how money began|what a map shows|"
    "how birds fly south|why the sea is salty|how glass is made|what causes an echo|how a seed grows|why we have seasons|"
    "how a bridge carries weight|what a shadow is|how soap cleans|why metal rusts|how a clock keeps time|what a vote is|"
    "how a letter is delivered|why onions make us cry|how paper is made|what a contract is|how a boat floats|why dogs bark|"
    "how mountains form|what an engine does|how to save water|why friends argue|how a price is set|what a desert is|"
    "how a camera works|why the moon changes shape|how to learn a language|what a volcano is|how cheese is made|"
    "why we need iron|how wind turns a mill|what a court does|how a violin makes sound|why hands get cold|how a lock works"
).split("|")
READERS = "a child of eight|a new neighbor|a class of beginners|a grandparent|a visitor from far away|a busy friend".split("|")
DISHES = (
    "lentil soup|apple pancakes|potato salad|rice with peas|tomato bread|bean stew|carrot cake|baked fish|onion tart|noodle soup|"
    "cheese dumplings|plum jam|pumpkin curry|egg sandwiches|cucumber salad|corn bread|mushroom pie|lemon cookies|fried eggplant|"
    "chicken with herbs|spinach rolls|oat porridge|pear crumble|cabbage soup|stuffed peppers|berry pudding|garlic beans"
).split("|")
OCCASIONS = (
    "a rainy evening|a birthday|four hungry hikers|a first day in a new home|a school party|a winter Sunday|a guest who comes early|"
    "a picnic|one person and little time|a large family|a camping stove|a sick friend"
).split("|")
PURPOSES = (
    "to say thank you for|to apologize about|to ask for help with|to share news about|to complain politely about|to ask advice about|"
    "to invite somebody to see|to say goodbye and mention|to remember a summer with|to warn somebody about|to offer to buy"
).split("|")
STORY_STARTS = (
    "On the first warm day of the year,|Nobody had expected it, but|{name} had never liked Mondays.|It began with a noise.|"
    'The rain had stopped an hour ago when|Long before the road was built,|"Wait for me!" called {name}.|Every evening at six,|'
    "There was once|{name} counted the money again.|In the middle of the night,|The sign on the door said|Far away from the city,|"
    '"I can explain," said {name}.|By the time the bell rang,|Two winters ago,|The smell of smoke woke {name}.|All summer long,|'
    "When {name} opened the door,|At the end of the street,|Everyone knew that|{name} was late again.|One morning in March,|"
    "The last train had left, and|It was too quiet.|Once,|Under the old tree,|{name} and {other} had been friends for years."
).split("|")
GOODS = (
    "a new ringtone|a used car|a week at the sea|a phone with a camera|a gym|a language course|a pizza service|a shoe shop|"
    "a music club|a travel agency|a mobile network|a cinema|a furniture store|a bicycle sale|a free gift|a prize draw|"
    "a photo studio|a hairdresser|a book fair|a taxi service|a flower shop|a computer repair shop|a bank account|a concert"
).split("|")
OFFER_STARTS = (
    "Special offer!|Call now!|FREE for one week only:|Congratulations! You have won|Dear customer,|Do you want|URGENT:|"
    "Today only:|Text us now|Win a prize!|Great news!|Last chance:|Half price!|To claim your prize,|Looking for"
).split("|")
MESSAGE_STARTS = (
    "Hi {other}, are you home yet?|{name}: ok, see you at 7|Sorry, I am late again.|Hey {other}! How was your day?|"
    "Can you call me when you are free?|Happy birthday, {other}!|Where are you now?|{name}: did you get my message?|"
    "Don't forget the milk please.|I'll be there in 10 minutes.|Good night {other},|What time does it start?|Thanks for last night!"
).split("|")
PLANS = (
    "who want to meet in the evening|about a bus that is late|about shopping for dinner|about a lost phone|about homework|"
    "about a birthday present|who have not met for months|about a party|about a doctor's appointment|about work tomorrow|"
    "who quarrel and make up|about a film|about the weather and a trip|about a new job|who plan a surprise"
).split("|")
DAYS = "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday".split("|")
WEATHER = "Rain all day.|Cold and clear.|So hot today.|Fog this morning.|Wind from the north.|The first snow.|Sunny at last.".split("|")
LENGTHS = "about 150 words|about 200 words|about 250 words|about 300 words".split("|")


@dataclass(frozen=True)
class Prompt:
    """What the model is asked, and the first words of its answer."""

    genre: str
    request: str
    opening: str


def short_story(pick, name: str, other: str) -> tuple[str, str]:
    request = (
        f"Write a {pick(MOODS)} short story of {pick(LENGTHS)} about {pick(PEOPLE)} in {pick(PLACES)}. "
        f"It must contain {pick(THINGS)}, and in it {pick(EVENTS)}."
    )
    return request, pick(STORY_STARTS).format(name=name, other=other)


def dialogue(pick, name: str, other: str) -> tuple[str, str]:
    request = (
        f"Write a {pick(MOODS)} dialogue of {pick(LENGTHS)} between {name}, {pick(PEOPLE)}, and {other}, {pick(PEOPLE)}. "
        f"They meet in {pick(PLACES)} and talk about {pick(THINGS)}. During the talk {pick(EVENTS)}."
    )
    return request, f"{name}:"


def letter(pick, name: str, other: str) -> tuple[str, str]:
    request = (
        f"Write a {pick(MOODS)} letter of {pick(LENGTHS)} from {name}, {pick(PEOPLE)}, to {other}, "
        f"{pick(PURPOSES)} {pick(THINGS)}. Mention {pick(PLACES)}."
    )
    return request, f"Dear {other},"


def explanation(pick, name: str, other: str) -> tuple[str, str]:
    topic = pick(TOPICS)
    request = f"Explain to {pick(READERS)} {topic}, in {pick(LENGTHS)}. Use {pick(THINGS)} or {pick(PLACES)} as an example."
    return request, pick([f"Here is {topic}.", "Imagine", "Most people", "The short answer is", "Let us begin with"])


def recipe(pick, name: str, other: str) -> tuple[str, str]:
    dish, occasion = pick(DISHES), pick(OCCASIONS)
    request = f"Write a recipe for {dish} for {occasion}, in {pick(LENGTHS)}, as {name}, {pick(PEOPLE)}, would tell it."
    return request, f"{dish.capitalize()} for {occasion}."


def diary(pick, name: str, other: str) -> tuple[str, str]:
    request = (
        f"Write a {pick(MOODS)} diary entry of {pick(LENGTHS)} by {name}, {pick(PEOPLE)}, after a day in {pick(PLACES)} "
        f"on which {pick(EVENTS)}. Mention {pick(THINGS)} and a friend named {other}."
    )
    return request, f"{pick(DAYS)}. {pick(WEATHER)}"


def advertisement(pick, name: str, other: str) -> tuple[str, str]:
    request = (
        f"Write a {pick(['short', 'loud', 'friendly', 'pushy'])} advertisement for {pick(GOODS)}, as it would come in a message "
        f"to a phone. Mention a price, a telephone number and {pick(DAYS)}. Then write two more for {pick(GOODS)} and {pick(GOODS)}."
    )
    return request, pick(OFFER_STARTS)


def messages(pick, name: str, other: str) -> tuple[str, str]:
    request = (
        f"Write ten short text messages between {name}, {pick(PEOPLE)}, and {other}, {pick(PLANS)}. "
        f"They are informal and {pick(MOODS)}, and one of them mentions {pick(THINGS)}."
    )
    return request, pick(MESSAGE_STARTS).format(name=name, other=other)


GENRES = {  # kind of text: (function, weight)
    "story": (short_story, 8), "dialogue": (dialogue, 3), "letter": (letter, 3), "explanation": (explanation, 3),
    "diary": (diary, 2), "messages": (messages, 2), "advertisement": (advertisement, 1), "recipe": (recipe, 1),
}  # fmt: skip


def make_prompt(number: int, seed: int, genres: list[str] | None = None) -> Prompt:
    """Return the prompt of document `number`; always the same one for the same seed and genres. KeyError: unknown genre."""
    choose = random.Random(f"prompt {seed} {number}")
    genres = list(GENRES) if genres is None else genres
    genre = choose.choices(genres, weights=[GENRES[name][1] for name in genres])[0]
    name, other = choose.sample(NAMES, 2)
    return Prompt(genre, *GENRES[genre][0](choose.choice, name, other))
