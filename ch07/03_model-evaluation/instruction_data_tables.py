# Generated from ch07/01_main-chapter-code/instruction_data_tables.py by `make copies`; do not edit.
"""Tables of facts that the checks of the instruction data look things up in: units, elements, compounds, capitals.

Nothing here is computed from the data: each table is a second, independent source for it. Chapter 7, the course's own data.
"""

from fractions import Fraction

# ---- units: code -> (dimension, factor to the dimension's base unit), all factors exact; temperatures are in verifiers ----


def _units(dimension: str, **factors: str) -> dict[str, tuple[str, Fraction]]:
    return {code: (dimension, Fraction(factor)) for code, factor in factors.items()}


_CUP = Fraction("236.5882365")  # milliliters in a US cup; a gallon is 231 cubic inches
UNITS = {
    **_units("length", mm="0.001", cm="0.01", m="1", km="1000", ft="0.3048", yd="0.9144", mi="1609.344"),
    "in": ("length", Fraction("0.0254")),
    **_units("mass", mg="0.001", g="1", kg="1000", t="1000000", oz="28.349523125", lb="453.59237"),
    **_units("volume", ml="1", l="1000"),
    **{
        code: ("volume", _CUP * Fraction(cups))
        for code, cups in {"tsp": "1/48", "tbsp": "1/16", "floz": "1/8", "cup": "1", "pt": "2", "qt": "4", "gal": "16"}.items()
    },
    **_units("time", s="1", min="60", h="3600", day="86400", week="604800"),
    **_units("area", m2="1", km2="1000000", cm2="0.0001", ha="10000", acre="4046.8564224", ft2="0.09290304"),
    **{
        code: ("speed", Fraction(factor))
        for code, factor in {"km/h": "5/18", "m/s": "1", "mph": "0.44704", "kn": "463/900"}.items()
    },
    **_units("data", bit="1/8", B="1", kB="1000", MB="1000000", GB="1000000000"),
    **_units("angle", deg="1", rad="57.29577951308232"),
    **_units("energy", J="1", kJ="1000", kcal="4184", Wh="3600", kWh="3600000"),
    **_units("pressure", Pa="1", kPa="1000", bar="100000", atm="101325"),
    **_units("pieces", piece="1", dozen="12"),
}

# How units are written in answers. A unit that stands behind the result must be the one that was asked for.
UNIT_NAMES = {
    "mm": "mm millimeter millimetre", "cm": "cm centimeter centimetre", "m": "m meter metre", "km": "km kilometer kilometre",
    "in": "inch inches", "ft": "ft foot feet", "yd": "yd yard", "mi": "mi mile",
    "mg": "mg milligram", "g": "g gram", "kg": "kg kilogram kilo", "t": "t ton tonne metric_ton", "oz": "oz ounce", "lb": "lb pound",
    "ml": "ml milliliter millilitre", "l": "l liter litre", "tsp": "tsp teaspoon", "tbsp": "tbsp tablespoon",
    "floz": "fl_oz fluid_ounce", "cup": "cup", "pt": "pint", "qt": "qt quart", "gal": "gal gallon",
    "s": "s second", "min": "min minute", "h": "h hour", "day": "day", "week": "week",
    "C": "C Celsius degrees_Celsius", "F": "F Fahrenheit degrees_Fahrenheit", "K": "K kelvin",
    "m2": "square_meter square_metre m² m2 m^2", "km2": "square_kilometer square_kilometre km² km2 km^2",
    "cm2": "square_centimeter square_centimetre cm² cm2 cm^2", "ha": "ha hectare", "acre": "acre", "ft2": "square_foot square_feet ft² ft2",
    "km/h": "km/h kilometers_per_hour kilometres_per_hour kilometers_an_hour", "m/s": "m/s meters_per_second metres_per_second",
    "mph": "mph miles_per_hour miles_an_hour", "kn": "kn knot",
    "B": "byte", "kB": "kB kilobyte", "MB": "MB megabyte", "GB": "GB gigabyte", "bit": "bit",
    "deg": "degree", "rad": "rad radian", "J": "J joule", "kJ": "kJ kilojoule", "kcal": "kcal kilocalorie",
    "Wh": "Wh watt_hour watt-hour", "kWh": "kWh kilowatt_hour kilowatt-hour",
    "Pa": "Pa pascal", "kPa": "kPa kilopascal", "bar": "bar", "atm": "atm atmosphere", "dozen": "dozen",
}  # fmt: skip

# ---- chemistry: all elements in the order of their numbers ----

_SYMBOLS = """H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru
Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th
Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"""
_NAMES = """hydrogen helium lithium beryllium boron carbon nitrogen oxygen fluorine neon sodium magnesium aluminum silicon phosphorus
sulfur chlorine argon potassium calcium scandium titanium vanadium chromium manganese iron cobalt nickel copper zinc gallium germanium
arsenic selenium bromine krypton rubidium strontium yttrium zirconium niobium molybdenum technetium ruthenium rhodium palladium silver
cadmium indium tin antimony tellurium iodine xenon cesium barium lanthanum cerium praseodymium neodymium promethium samarium europium
gadolinium terbium dysprosium holmium erbium thulium ytterbium lutetium hafnium tantalum tungsten rhenium osmium iridium platinum gold
mercury thallium lead bismuth polonium astatine radon francium radium actinium thorium protactinium uranium neptunium plutonium americium
curium berkelium californium einsteinium fermium mendelevium nobelium lawrencium rutherfordium dubnium seaborgium bohrium hassium
meitnerium darmstadtium roentgenium copernicium nihonium flerovium moscovium livermorium tennessine oganesson"""
ELEMENTS = {name: (symbol, number) for number, (name, symbol) in enumerate(zip(_NAMES.split(), _SYMBOLS.split()), start=1)}
ELEMENT_SPELLINGS = {"aluminium": "aluminum", "sulphur": "sulfur", "caesium": "cesium"}
SYMBOLS_THAT_ARE_WORDS = {"I", "He", "In", "As", "At", "No", "Be", "Am", "Ho", "Os", "La"}

COMPOUNDS = {
    "water": "H2O", "table salt": "NaCl", "sodium chloride": "NaCl", "carbon dioxide": "CO2", "carbon monoxide": "CO",
    "methane": "CH4", "ammonia": "NH3", "hydrogen peroxide": "H2O2", "ozone": "O3", "baking soda": "NaHCO3", "glucose": "C6H12O6",
    "sulfuric acid": "H2SO4", "hydrochloric acid": "HCl", "nitric acid": "HNO3", "calcium carbonate": "CaCO3", "limestone": "CaCO3",
    "chalk": "CaCO3", "quartz": "SiO2", "silicon dioxide": "SiO2", "rust": "Fe2O3", "iron oxide": "Fe2O3", "ethanol": "C2H6O",
    "laughing gas": "N2O", "nitrous oxide": "N2O", "quicklime": "CaO", "calcium oxide": "CaO", "magnesium oxide": "MgO",
    "sodium hydroxide": "NaOH", "lye": "NaOH", "acetic acid": "C2H4O2", "propane": "C3H8", "butane": "C4H10", "benzene": "C6H6",
    "table sugar": "C12H22O11", "sucrose": "C12H22O11", "sodium bicarbonate": "NaHCO3", "hydrogen sulfide": "H2S",
}  # fmt: skip

# ---- countries and capitals: only those that nobody disputes ----

CAPITALS = dict(
    line.strip().split(":")
    for line in """Afghanistan:Kabul / Albania:Tirana / Algeria:Algiers / Andorra:Andorra la Vella / Angola:Luanda / Argentina:Buenos Aires
    / Armenia:Yerevan / Australia:Canberra / Austria:Vienna / Azerbaijan:Baku / Bahamas:Nassau / Bahrain:Manama / Bangladesh:Dhaka
    / Barbados:Bridgetown / Belarus:Minsk / Belgium:Brussels / Belize:Belmopan / Bhutan:Thimphu / Bosnia and Herzegovina:Sarajevo
    / Botswana:Gaborone / Brazil:Brasília / Brunei:Bandar Seri Begawan / Bulgaria:Sofia / Burkina Faso:Ouagadougou / Cambodia:Phnom Penh
    / Cameroon:Yaoundé / Canada:Ottawa / Cape Verde:Praia / Chad:N'Djamena / Chile:Santiago / China:Beijing / Colombia:Bogotá
    / Comoros:Moroni / Costa Rica:San José / Croatia:Zagreb / Cuba:Havana / Cyprus:Nicosia / Czech Republic:Prague / Denmark:Copenhagen
    / Djibouti:Djibouti City / Dominica:Roseau / Dominican Republic:Santo Domingo / Ecuador:Quito / Egypt:Cairo / El Salvador:San Salvador
    / Eritrea:Asmara / Estonia:Tallinn / Ethiopia:Addis Ababa / Fiji:Suva / Finland:Helsinki / France:Paris / Gabon:Libreville
    / Gambia:Banjul / Georgia:Tbilisi / Germany:Berlin / Ghana:Accra / Greece:Athens / Grenada:Saint George's / Guatemala:Guatemala City
    / Guinea:Conakry / Guinea-Bissau:Bissau / Guyana:Georgetown / Haiti:Port-au-Prince / Honduras:Tegucigalpa / Hungary:Budapest
    / Iceland:Reykjavík / India:New Delhi / Iran:Tehran / Iraq:Baghdad / Ireland:Dublin / Italy:Rome / Jamaica:Kingston / Japan:Tokyo
    / Jordan:Amman / Kenya:Nairobi / Kuwait:Kuwait City / Kyrgyzstan:Bishkek / Laos:Vientiane / Latvia:Riga / Lebanon:Beirut
    / Lesotho:Maseru / Liberia:Monrovia / Libya:Tripoli / Liechtenstein:Vaduz / Lithuania:Vilnius / Luxembourg:Luxembourg City
    / Madagascar:Antananarivo / Malawi:Lilongwe / Malaysia:Kuala Lumpur / Maldives:Malé / Mali:Bamako / Malta:Valletta
    / Mauritania:Nouakchott / Mauritius:Port Louis / Mexico:Mexico City / Moldova:Chișinău / Mongolia:Ulaanbaatar / Montenegro:Podgorica
    / Morocco:Rabat / Mozambique:Maputo / Namibia:Windhoek / Nepal:Kathmandu / Netherlands:Amsterdam / New Zealand:Wellington
    / Nicaragua:Managua / Niger:Niamey / Nigeria:Abuja / North Korea:Pyongyang / North Macedonia:Skopje / Norway:Oslo / Oman:Muscat
    / Pakistan:Islamabad / Panama:Panama City / Papua New Guinea:Port Moresby / Paraguay:Asunción / Peru:Lima / Philippines:Manila
    / Poland:Warsaw / Portugal:Lisbon / Qatar:Doha / Romania:Bucharest / Russia:Moscow / Rwanda:Kigali / Samoa:Apia
    / Saudi Arabia:Riyadh / Senegal:Dakar / Serbia:Belgrade / Seychelles:Victoria / Sierra Leone:Freetown / Slovakia:Bratislava
    / Slovenia:Ljubljana / Somalia:Mogadishu / South Korea:Seoul / Spain:Madrid / Sudan:Khartoum / Suriname:Paramaribo / Sweden:Stockholm
    / Switzerland:Bern / Syria:Damascus / Tajikistan:Dushanbe / Tanzania:Dodoma / Thailand:Bangkok / Togo:Lomé / Tonga:Nuku'alofa
    / Trinidad and Tobago:Port of Spain / Tunisia:Tunis / Turkey:Ankara / Turkmenistan:Ashgabat / Uganda:Kampala / Ukraine:Kyiv
    / United Arab Emirates:Abu Dhabi / United Kingdom:London / United States:Washington / Uruguay:Montevideo / Uzbekistan:Tashkent
    / Vanuatu:Port Vila / Venezuela:Caracas / Vietnam:Hanoi / Zambia:Lusaka / Zimbabwe:Harare""".split("/")
)  # fmt: skip
COUNTRY_SPELLINGS = {"Czechia": "Czech Republic", "Cabo Verde": "Cape Verde", "Türkiye": "Turkey", "Great Britain": "United Kingdom"}

# ---- parts of speech that may be asked for ----

WORD_CLASSES = ("noun", "verb", "adjective", "adverb", "preposition", "conjunction", "pronoun", "article", "interjection", "determiner")
