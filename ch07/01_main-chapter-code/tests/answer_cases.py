"""Right and wrong answers to one question or two of each family: CASES = [(family, question, check, right, wrong)]."""


def text(*accept, **more):
    return {"kind": "text", "accept": list(accept), **more}


def word(*accept):
    return {"kind": "word", "accept": list(accept)}


def number(*accept):
    return {"kind": "number", "accept": list(accept)}


LONG = " and so on and on" * 15
RAMBLE = "\n\n### Instruction:\nName a color.\n\n### Response:\nBlue"
SOUP = "The soup was burned by the cook."

CASES = [
    (
        "passive", "Change this sentence from active to passive: The cook burned the soup.", text(SOUP, "The soup was burnt by the cook."),
        [SOUP, "The soup was burned by the cook", "the soup was burnt by the cook.", '"The soup was burned by the cook."', f"**{SOUP}**",
         f"Sure! {SOUP}", f"The passive sentence is: {SOUP}", f'The passive form is "{SOUP}"',
         f"Here is the sentence in the passive voice:\n{SOUP}"],
        ["The cook burned the soup.",
         "The soup was burned by the cook?", f"{SOUP} {SOUP}", f"{SOUP} It tasted bad.", SOUP + RAMBLE, SOUP + LONG,
         "The soup was burned.", f"It is not: {SOUP}", f"The soup was burned by the cook or {SOUP}",
         "The soup was not burned by the cook.",
         f"My uncle always tells me: {SOUP}"],
    ),
    (
        "past_tense", "Put this sentence into the past tense.\nMaria does not eat meat.", text("Maria did not eat meat."),
        ["Maria did not eat meat.", "Maria didn't eat meat.", "Maria didn\u2019t eat meat", "In the past tense: Maria did not eat meat."],
        ["Maria does not eat meat.", "Maria did not ate meat.", "Maria doesn't eat meat.", "Maria did not eat meat yesterday.",
         "did not eat"],
    ),
    (
        "question", "Turn the statement into a question.\nMara has a bicycle.",
        text("Does Mara have a bicycle?", "Has Mara got a bicycle?"),
        ["Does Mara have a bicycle?", "does Mara have a bicycle", '"Has Mara got a bicycle?"',
         "The question is: Does Mara have a bicycle?"],
        ["Does Mara have a bicycle.", "Mara has a bicycle?", "Does Mara has a bicycle?", "Does Mara have a bicycle? Yes, she does.",
         "Does Mara have a bicycle? Has Mara got a bicycle?", "What does Mara have?"],
    ),
    (
        "grammar", "Correct the mistake in this sentence: She don't like rain.", text("She doesn't like rain."),
        ["She doesn't like rain.", "She does not like rain.", "The corrected sentence is: She doesn't like rain.",
         'Of course! "She doesn\'t like rain."', "Correct: She does not like rain"],
        ["She don't like rain.", "She do not like rain.", "She doesn't likes rain.", "doesn't", 'Replace "don\'t" with "doesn\'t".',
         "She doesn't like rain. She doesn't like snow."],
    ),
    (
        "spelling", 'The word "recieve" is misspelled. Write it correctly.', word("receive"),
        ["receive", "Receive.", '"receive"', "**receive**", "The correct spelling is receive.", 'It is spelled "receive".',
         "Sure! receive",
         'The correct spelling of "recieve" is "receive".', "Answer: receive"],
        ["recieve", "receive or recieve", "receive, relieve", "The correct spelling is recieve.", "recieve receive", "receve", "received",
         "The word is not spelled receive.", "receive" + RAMBLE],
    ),
    (
        "opposites", 'What is the opposite of "hot"?', word("cold", "chilly"),
        ["cold", "Cold.", "chilly", "'cold'", "The opposite of hot is cold.", "Cold is the opposite of hot.", "The answer is \"cold\".",
         "It's cold.",
         "cold!"],
        ["hot", "not cold but hot", "cold or cool", "cold, icy", "The opposite of hot is not cold.", "It is ice cold.", "cold cold",
         "The opposite of hot is hot.",
         "What is the opposite of cold?", "Is it cold?", "cold. I like it when winter comes to town.", "The soup in the kitchen is cold."],
    ),
    (
        "plurals", 'What is the plural of "knife"?', word("knives"),
        ["knives", "Knives.", "the knives", "The plural of knife is knives.", "Knives is the plural of knife.",
         'The plural form is "knives".'],
        ["knifes", "knife", "knife, knives", "knives and forks", "The plural of knife is knifes.", "The plural of knife is not knives.",
         "knives or knifes"],
    ),
    (
        "translation", 'Translate "house" into Spanish.', word("casa", "la casa", "una casa"),
        ["casa", "Casa.", "la casa", "La casa", "una casa", 'The Spanish word for house is "casa".',
         "House is casa in Spanish.".replace(" in Spanish", ""),
         "Casa is the Spanish word for house.", '"house" in Spanish is "la casa"'],
        ["el casa", "house", "casa, hogar", "casa or hogar", "maison", "The Spanish word for house is not casa.", "casas", "mi casa",
         "The Spanish word for home, sweet home is casa."],
    ),
    (
        "translation", 'Translate "street" into German.', word("Stra\u00dfe", "die Stra\u00dfe"),
        ["Stra\u00dfe", "stra\u00dfe", "Strasse", "die Stra\u00dfe", "The German word is Stra\u00dfe."],
        ["Strase", "der Stra\u00dfe", "street", "Weg"],
    ),
    (
        "capitals", "What is the capital of France?", word("Paris"),
        ["Paris", "Paris.", "The capital of France is Paris.", "Paris is the capital of France.", "It is Paris.", "paris",
         "The capital city is Paris."],
        ["France", "Lyon", "Paris, Lyon", "Paris or Lyon", "Not Paris but Lyon", "The capital of France is not Paris.",
         "The capital of Spain is Paris.",
         "Paris is not the capital of France.", "The capital of France is Lyon.",
         "Paris is the largest city in Europe and a lovely place."],
    ),
    (
        "category", 'Is "hammer" an animal, a food, a tool, a piece of clothing, or a vehicle?', word("tool", "tools"),
        ["tool", "Tool.", "a tool", "A hammer is a tool.", "It is a tool.", 'The category of "hammer" is tool.', "Category: tool",
         "tools"],
        ["animal", "a tool or a vehicle", "animal, food, tool", "an animal, a food, a tool", "It is not a tool.", "hammer",
         "A hammer is a vehicle.",
         'Is "hammer" a tool?', "A hammer is a tool and a vehicle.", "It is neither a food nor a tool."],
    ),
    (
        "sentiment", "Is this sentence positive or negative? The staff was rude and slow.", word("negative"),
        ["negative", "Negative.", "It is negative.", "The sentence is negative.", "This sentence is negative.",
         "The sentiment is negative.", "Sentiment: negative"],
        ["positive", "positive or negative", "The sentence is not negative.", "It is positive, not negative.", "negative positive",
         "The staff was rude.",
         "The sentence is positive.", "Positive and negative."],
    ),
    (
        "part_of_speech", 'Is "quickly" a noun, a verb, an adjective, or an adverb?', word("adverb"),
        ["adverb", "an adverb", "Adverb.", '"Quickly" is an adverb.', "The word quickly is an adverb.", "It's an adverb."],
        ["adjective", "an adjective, or an adverb", "verb", "adverb, adjective", "It is not an adverb.", "quickly",
         "noun verb adjective adverb"],
    ),
    (
        "uppercase", "Write this in capital letters: wet paint", text("WET PAINT", case=True),
        ["WET PAINT", "WET PAINT.", '"WET PAINT"', "Sure! WET PAINT", "In capital letters: WET PAINT",
         "The text in uppercase is WET PAINT."],
        ["wet paint", "Wet Paint", "WET paint", "WETPAINT", "WET PAINTS", "WET PAINT WET PAINT", "WET, PAINT", "WET PAINT. Keep off."],
    ),
    (
        "last_word", "What is the last word of this sentence? The cat slept on the warm mat.", word("mat"),
        ["mat", "Mat.", '"mat"', "The last word is mat.", 'The last word of the sentence is "mat".', "Mat is the last word.",
         'The last word of "The cat slept on the warm mat." is "mat".'],
        ["The cat slept on the warm mat.", "warm mat", "cat", "the warm mat", "cat or mat", "The last word is not mat.",
         "The last word is warm mat.",
         "mat, warm, the"],
    ),
    (
        "last_word", "Give the last word of the sentence.\nThe dog is happy.", word("happy"),
        ["happy", "The last word is happy."], ["The dog is happy.", "dog is happy", "is happy", "dog"],
    ),
    (
        "larger_number", "Which is larger, 1250 or 173?", number("1250"),
        ["1250", "1,250", "1250.", "The larger number is 1250.", "1250 is larger than 173.", "1,250 is larger.",
         "The larger one is 1250", "1250 > 173",
         "Between 1250 and 173, the larger number is 1250.", "173 < 1250", "**1250**"],
        ["173", "1250 or 173", "173 is larger than 1250.", "1250 is not larger.", "1250, 173", "Which is larger, 1250 or 173?",
         "1250 and 173", "12.50",
         "125", "The larger number is 173.", "1250 1250 1250 99", "12500"],
    ),
    (
        "larger_number", "Which is larger, 4.5 or 4.2?", number("4.5"), ["4.5", "4.50", "It is 4.5."], ["4.2", "45", "4", "5"],
    ),
    (
        "sort_numbers", "Sort these numbers from smallest to largest: 42, 7, 19", {"kind": "list", "accept": ["7, 19, 42"]},
        ["7, 19, 42", "7,19,42", "7 19 42", "7, 19 and 42", "7, 19, and 42.", "7 < 19 < 42", "7 -> 19 -> 42", "7\n19\n42",
         "- 7\n- 19\n- 42", "1. 7\n2. 19\n3. 42",
         "From smallest to largest: 7, 19, 42", "The sorted numbers are 7, 19, 42.", "[7, 19, 42]", "Sure! 7, 19, 42", "7; 19; 42",
         "7, then 19, then 42"],
        ["42, 7, 19", "42, 19, 7", "7, 19", "7, 19, 42, 50", "7, 19, 42, 7, 19, 42", "71942", "7, 42, 19", "7, 19 or 42",
         "The numbers are not 7, 19, 42",
         "7, 19, 42 are the numbers you asked for", "7"],
    ),
    (
        "sort_numbers", "Sort these numbers from smallest to largest: 1000, 10, 100", {"kind": "list", "accept": ["10, 100, 1000"]},
        ["10, 100, 1000", "10, 100, 1,000", "10,100,1000"], ["10, 100", "1000, 100, 10", "10, 1000"],
    ),
    (
        "arithmetic", "What is 48 + 25?", number("73"),
        ["73", "73.", "48 + 25 = 73", "48+25=73", "48 + 25 is 73.", "The answer is 73.", "It is seventy-three.", "Seventy three",
         "The sum is 73", "73.0",
         "The sum of 48 and 25 is 73."],
        ["48 + 25", "72", "73 or 74", "73, 74", "48", "48 + 25 = 74", "40 + 33 = 73", "-73", "It is not 73.", "730", "7 3", "73%5",
         "48 + 25 = 73 = 74",
         "Is it 73?", "73 bottles of milk stood on the wall", "73" + RAMBLE],
    ),
    (
        "arithmetic", "How much is half of 18?", number("9"), ["9", "nine", "Half of 18 is 9.", "9 is half of 18."], ["18", "half of 18",
        "Half of 18 is 8.", "9 18", "19"],
    ),
    (  # without the question, so that only the answer's own words can give it away
        "capitals", "", word("Paris"),
        ["Paris", "The capital of France is Paris.", "Paris is the capital of France."],
        ["It is Lyon or it is Paris.", "Perhaps it is Paris.", "It is not: Paris", "Paris is not the capital of France."],
    ),
    ("arithmetic", "", number("73"), ["73", "48 + 25 = 73", "It is 73."], ["It is not 73.", "Maybe it is 73.", "72", "It isn't 73."]),
    ("passive", "", text(SOUP), [SOUP, f"It is: {SOUP}"], [f"It is not: {SOUP}", f"Wrong: {SOUP}"]),
]  # fmt: skip
