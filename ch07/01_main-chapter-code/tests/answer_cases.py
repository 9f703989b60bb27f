"""Right and wrong answers for every kind of check, written by hand: (check, [answers])."""

KM = {"kind": "convert", "value": 5, "from": "km", "to": "m"}
LB = {"kind": "convert", "value": 12, "from": "lb", "to": "kg"}
F = {"kind": "convert", "value": 14, "from": "F", "to": "C"}
SUM = {"kind": "arithmetic", "expression": "12*7+5"}
COUNT = {"kind": "count", "what": "letter:e", "text": "The sleepy bee left 2 trees."}
SORT = {"kind": "sort", "items": ["pear", "fig", "apple", "quince"], "key": "alphabet", "reverse": False}
NUMBERS = {"kind": "sort", "items": ["12", "3.5", "40", "8"], "key": "number", "reverse": True}
PICK = {"kind": "pick", "items": ["otter", "elephant", "ox"], "key": "length", "which": "last"}
UPPER = {"kind": "string", "operation": "swap_case", "text": "LowTide"}
LETTER = {"kind": "string", "operation": "last_letter", "text": "horizon"}
WEEKDAY = {"kind": "date", "operation": "weekday", "date": "2027-03-14"}
LATER = {"kind": "date", "operation": "weekday_after", "weekday": "Thursday", "days": 12}
ADD = {"kind": "date", "operation": "add_days", "date": "2027-10-18", "days": 21}
BETWEEN = {"kind": "date", "operation": "days_between", "date": "2027-05-03", "to": "2027-06-12"}
CLOCK = {"kind": "date", "operation": "add_minutes", "time": "14:50", "minutes": 95}
LASTS = {"kind": "date", "operation": "minutes_between", "time": "09:15", "to": "11:40"}
LEAP = {"kind": "date", "operation": "leap_year", "year": 2028}
COMMON = {"kind": "date", "operation": "leap_year", "year": 1900}
CENTURY = {"kind": "date", "operation": "century", "year": 1789}
TO24 = {"kind": "date", "operation": "to_24h", "time": "21:40"}
TO12 = {"kind": "date", "operation": "to_12h", "time": "21:40"}
MONTH = {"kind": "date", "operation": "month_after", "month": "May", "months": 7}
LENGTH = {"kind": "date", "operation": "month_length", "year": 2028, "month": 2}
DAY = {"kind": "date", "operation": "day_of_year", "date": "2028-03-01"}
WORD = {"kind": "spelling", "text": "recieve", "fixes": {"recieve": "receive"}}
LINE = {"kind": "spelling", "text": "I beleive your umbrella is in our hall.", "fixes": {"beleive": "believe"}}
NOUNS = {"kind": "pos", "text": "The cat chased a ball.", "tag": "noun", "words": ["cat", "ball"]}
TAG = {"kind": "pos", "text": "She sang softly.", "tag": "adverb", "word": "softly"}
IRON = {"kind": "element", "element": "iron", "want": "symbol"}
HELIUM = {"kind": "element", "element": "helium", "want": "symbol"}
NAME = {"kind": "element", "element": "gold", "want": "name"}
PROTONS = {"kind": "element", "element": "carbon", "want": "number"}
SALT = {"kind": "compound", "name": "table salt", "formula": "NaCl", "want": "formula"}
WATER = {"kind": "compound", "name": "water", "formula": "H2O", "want": "formula"}
ATOMS = {"kind": "compound", "name": "methane", "formula": "CH4", "want": "atoms"}
GAS = {"kind": "compound", "name": "carbon dioxide", "formula": "CO2", "want": "name"}
PERU = {"kind": "capital", "country": "Peru", "want": "capital"}
BOGOTA = {"kind": "capital", "country": "Colombia", "want": "capital"}
MEXICO = {"kind": "capital", "country": "Mexico", "want": "capital"}
NEPAL = {"kind": "capital", "country": "Nepal", "want": "country"}

RIGHT = [
    (KM, ["5000", "5,000 meters", "5 km are 5000 m.", "Good question! That is 5,000 m, of course.", "five thousand is 5000"]),
    (LB, ["About 5.44 kilograms.", "5.443 kg", "12 pounds weigh 5.44311 kilos."]),
    (F, ["-10", "It is -10 °C.", "That is minus 10 degrees Celsius.", "14 °F is −10 °C."]),
    (SUM, ["89", "It is 89.", "12 times 7 is 84, and 5 more make 89.", "The answer is eighty-nine."]),
    (COUNT, ["8", "It has 8 of them.", "The letter 'e' occurs eight times.", "\"The sleepy bee left 2 trees.\" has 8 e's."]),
    (SORT, ["apple, fig, pear, quince", "Sorted: apple, fig, pear and quince.", "Apple\nFig\nPear\nQuince",
            "1. apple\n2. fig\n3. pear\n4. quince",
            "Here you are: apple, fig, pear, quince. I hope it helps!"]),
    (NUMBERS, ["40, 12, 8, 3.5", "In falling order they are 40, 12, 8, and 3.5."]),
    (PICK, ["elephant", "The longest word is 'elephant'.", "Elephant, by far."]),
    (UPPER, ["lOWtIDE", "lOWtIDE.", "It becomes 'lOWtIDE'.", "The result is lOWtIDE.", "\"LowTide\" turns into \"lOWtIDE\"."]),
    (LETTER, ["n", "The last letter is 'n'.", "The last letter of 'horizon' is n."]),
    (WEEKDAY, ["Sunday", "March 14, 2027, is a Sunday."]),
    (LATER, ["Tuesday", "12 days after a Thursday it is Tuesday."]),
    (ADD, ["November 8, 2027", "It is due on 8 November 2027.", "2027-11-08", "On Monday, November 8, 2027.",
            "October 18 plus 21 days is November 8."]),
    (BETWEEN, ["40", "It is 40 days from May 3, 2027, to June 12, 2027.", "forty days"]),
    (CLOCK, ["16:25", "4:25 p.m.", "It ends at 4:25 PM.", "From 14:50 it takes until 16:25."]),
    (LASTS, ["145", "145 minutes", "2 hours and 25 minutes", "two hours, twenty-five minutes",
            "From 09:15 to 11:40 it is 2 hours 25 minutes."]),
    (LEAP, ["Yes", "Yes, 2028 is a leap year.", "2028 is a leap year.", "No problem: yes, it is."]),
    (COMMON, ["No.", "1900 was not a leap year.", "It wasn't one.", "No, it was a common year."]),
    (CENTURY, ["the 18th century", "It was the eighteenth century.", "1789 is in the 18th."]),
    (TO24, ["21:40", "9:40 p.m. is 21:40."]),
    (TO12, ["9:40 p.m.", "9:40 PM", "21:40 is 9:40 p.m."]),
    (MONTH, ["December", "7 months after May comes December."]),
    (LENGTH, ["29", "February 2028 has 29 days."]),
    (DAY, ["61", "It is the 61st day of 2028.", "March 1, 2028, is day 61."]),
    (WORD, ["receive", "Receive.", "The right spelling is 'receive'."]),
    (LINE, ["I believe your umbrella is in our hall.", "Here: \"I believe your umbrella is in our hall.\"", "believe"]),
    (NOUNS, ["cat, ball", "The nouns are 'cat' and 'ball'.", "The nouns are cat and ball.", "'cat' and 'ball'. Well done!",
            "Cat and ball are the nouns."]),
    (TAG, ["adverb", "It is an adverb.", "In that sentence 'softly' is an adverb."]),
    (IRON, ["Fe", "Iron is Fe.", "The symbol is 'Fe'. I hope that helps!"]),
    (HELIUM, ["He", "Its symbol is He.", "The symbol 'He' stands for it."]),
    (NAME, ["gold", "That is gold.", "Gold has 79 protons.".replace("79 protons", "that symbol")]),
    (PROTONS, ["6", "Carbon has 6 protons.", "six"]),
    (SALT, ["NaCl", "They write NaCl."]),
    (WATER, ["H2O", "Water is H₂O."]),
    (ATOMS, ["5", "Its 1 carbon and 4 hydrogen atoms make 5."]),
    (GAS, ["carbon dioxide", "The gas is carbon dioxide."]),
    (PERU, ["Lima", "The capital of Peru is Lima.", "Happily, Lima.", "Lima, Peru"]),
    (BOGOTA, ["Bogotá", "It is Bogota."]),
    (MEXICO, ["Mexico City", "The capital of Mexico is Mexico City."]),
    (NEPAL, ["Nepal", "Kathmandu is the capital of Nepal."]),
]  # fmt: skip

WRONG = [
    (KM, ["500", "5", "5000 or 500", "5,000 kilometers", "50, 500, 5000", "500, 5000, 50000", "about 5010", "5 km"]),
    (LB, ["5.4", "5.45", "5.5 kilograms", "5.44 pounds", "26.5"]),
    (F, ["10", "-9", "57.2", "-10 °F"]),
    (SUM, ["88", "12 times 7 is 84", "84", "89 or 90", "87, 88, 89", "89, 90"]),
    (COUNT, ["7", "It has 2.", "7 or 8", "Some.", "6, 7, 8"]),
    (SORT, ["apple, fig, pear", "apple, pear, fig, quince", "apple, fig, pear, quince, kiwi", "kiwi, apple, fig, pear, quince",
            "apple, fig, fig, pear, quince", "apple, fig, pear, quince, apple", "apple fig pear or quince", "pear, fig, apple, quince"]),
    (NUMBERS, ["3.5, 8, 12, 40", "40, 12, 8, 3", "40, 12, 8, 3.5, 1", "40, 12, 9, 8, 3.5", "50, 40, 12, 8, 3.5"]),
    (PICK, ["otter", "elephant or otter", "otter, elephant, ox", "maybe elephant", "the elephants of the otter"]),
    (UPPER, ["LOWTIDE", "LowTide", "lowtide", "lOWtIDE or LOWtIDE", "'lOWtIDE', 'lowTIDE'", "lOWtIDE, LOWtide, lowTIDE", "tca lOWtIDE"]),
    (LETTER, ["N", "h", "'o' and 'n'", "h, o, r, i, z, o, n", "'h' or 'n'"]),
    (WEEKDAY, ["Monday", "Sunday or Monday", "Saturday, Sunday, Monday", "It is the day after Saturday: Sunday"]),
    (LATER, ["Thursday", "Wednesday", "Monday, Tuesday", "Tuesday or Thursday"]),
    (ADD, ["November 7, 2027", "November 8, 2028", "November 8 or 9, 2027", "November 8, 2027, or November 9, 2027",
            "Tuesday, November 8, 2027",
           "October 18, 2027"]),
    (BETWEEN, ["41", "40 or 41", "39, 40, 41", "from May 3, 2027, to June 12, 2027"]),
    (CLOCK, ["16:15", "4:25 a.m.", "4:25", "14:50", "16:25 or 16:35", "16:15, 16:25"]),
    (LASTS, ["2 hours", "2 hours and 15 minutes", "145 hours", "09:15 to 11:40", "2 hours and 25 minutes or 150 minutes"]),
    (LEAP, ["No", "Yes and no", "2028 is not a leap year.", "Is 2028 a leap year?", "2028", "Yes, it is not."]),
    (COMMON, ["Yes.", "1900 was a leap year.", "No, 1900 was a leap year."]),
    (CENTURY, ["17th", "the 17th or 18th century", "1789", "the 17th, 18th, 19th"]),
    (TO24, ["9:40 p.m.", "9:40", "09:40", "21:04", "21:40 or 20:40"]),
    (TO12, ["21:40", "9:40 a.m.", "9:40", "9:40 a.m. or 9:40 p.m."]),
    (MONTH, ["November", "November or December", "May", "October, November, December"]),
    (LENGTH, ["28", "28 or 29", "2028", "28, 29"]),
    (DAY, ["60", "61 or 60", "March 1, 2028"]),
    (WORD, ["recieve", "'recieve' or 'receive'", "receeve", "receive, receeve, receve", "The word."]),
    (LINE, ["I believe your umbrella is at our hall.", "I beleive your umbrella is in our hall.",
            "I believe your umbrela is in the hall.", "belief"]),
    (NOUNS, ["cat", "cat, ball, dog", "'cat', 'ball', 'chased'", "The cat chased a ball.", "The nouns are cat, chased and ball."]),
    (TAG, ["verb", "adverb or adjective", "noun, verb, adjective, adverb", "softly", "adverbial"]),
    (IRON, ["FE", "fe", "Ir", "Fe or Au", "Fe, Au, Ag", "Fer", "iron", "Au, not Fe"]),
    (HELIUM, ["he", "H", "He is a person who lives here", "HE", "He or H"]),
    (NAME, ["silver", "gold or silver", "gold, silver, copper", "golden", "Au"]),
    (PROTONS, ["7", "6 or 12", "12", "6, 7, 8"]),
    (SALT, ["NaCL", "nacl", "NaCl or KCl", "NaCl2", "NaCl, KCl"]),
    (WATER, ["HO2", "H2O2", "h2o", "H2O, CO2"]),
    (ATOMS, ["4", "1 and 4", "6", "4 or 5"]),
    (GAS, ["carbon monoxide", "carbon", "carbon dioxide or carbon monoxide", "carbon dioxide, methane, ozone"]),
    (PERU, ["Quito", "Lima or Quito", "Cusco, Lima, Arequipa", "Cusco, Lima", "Lima, Cusco", "Lima, Quito, Bogotá", "Peru", "Limassol"]),
    (BOGOTA, ["Medellín", "Bogotá or Cali", "Colombia"]),
    (MEXICO, ["Mexico", "City", "Guatemala City"]),
    (NEPAL, ["Kathmandu", "Nepal or Bhutan", "India, Nepal", "Nepalese"]),
]  # fmt: skip
