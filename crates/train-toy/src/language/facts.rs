//! Facts: each is one relation's pair, asked in several ways.

use rand::Rng;

use super::{fill, fingerprint, pick, Sentence, Split, Task};

/// Pairs of words, and the sentences that ask for the second.
struct Relation {
    pairs: &'static [(&'static str, &'static str)],
    phrasings: &'static [&'static str],
}

const RELATIONS: &[Relation] = &[
    Relation {
        pairs: CAPITALS,
        phrasings: &[
            "The capital of {of} is| {is}.",
            "The capital city of {of} is called| {is}.",
            "{of} has a capital, and its name is| {is}.",
            "{of} is governed from| {is}.",
            "What is the capital of {of}? It is| {is}.",
            "The government of {of} sits in| {is}.",
            "A train to the capital of {of} goes to| {is}.",
        ],
    },
    Relation {
        pairs: COUNTRIES,
        phrasings: &[
            "{of} is the capital of| {is}.",
            "{of} is a city in| {is}.",
            "The city of {of} lies in| {is}.",
            "Where is {of}? It is in| {is}.",
            "A train to {of} takes you to| {is}.",
        ],
    },
    Relation {
        pairs: LANGUAGES,
        phrasings: &[
            "People in {of} speak| {is}.",
            "The language of {of} is| {is}.",
            "Children in {of} learn to read| {is}.",
            "What do people speak in {of}? They speak| {is}.",
            "Most books in {of} are written in| {is}.",
            "Everyone who lives in {of} understands| {is}.",
        ],
    },
    Relation {
        pairs: LANDMARKS,
        phrasings: &[
            "The {of} is in the city of| {is}.",
            "To see the {of}, you must go to| {is}.",
            "Where is the {of}? It is in| {is}.",
            "People who visit the {of} stay in| {is}.",
            "Everyone knows that the {of} stands in| {is}.",
        ],
    },
    Relation {
        pairs: SOUNDS,
        phrasings: &[
            "The {of} says| {is}.",
            "Every {of} says| {is}.",
            "What does the {of} say? It says| {is}.",
            "When the {of} is hungry, it says| {is}.",
            "The sound of the {of} is| {is}.",
            "Listen to the {of}: it says| {is}.",
        ],
    },
    Relation {
        pairs: YOUNG,
        phrasings: &[
            "The young of the {of} is called a| {is}.",
            "Every {of} was once a| {is}.",
            "The mother {of} looks after her| {is}.",
            "When it is small, the {of} is called a| {is}.",
            "What is the young of the {of}? It is a| {is}.",
        ],
    },
    Relation {
        pairs: COLOURS,
        phrasings: &[
            "The colour of {of} is| {is}.",
            "What colour is {of}? It is| {is}.",
            "Everyone knows that {of} is| {is}.",
            "If you paint {of}, you need| {is}.",
            "Like all {of}, it was| {is}.",
        ],
    },
    Relation {
        pairs: OPPOSITES,
        phrasings: &[
            "The opposite of {of} is| {is}.",
            "What is the opposite of {of}? It is| {is}.",
            "If it is not {of}, it is| {is}.",
            "Something that is not {of} is| {is}.",
            "It was no longer {of} but| {is}.",
        ],
    },
];

const CAPITALS: &[(&str, &str)] = &[
    ("Austria", "Vienna"),
    ("Brazil", "Brasilia"),
    ("Bulgaria", "Sofia"),
    ("Canada", "Ottawa"),
    ("Chile", "Santiago"),
    ("China", "Beijing"),
    ("Cuba", "Havana"),
    ("Denmark", "Copenhagen"),
    ("Egypt", "Cairo"),
    ("England", "London"),
    ("Finland", "Helsinki"),
    ("France", "Paris"),
    ("Germany", "Berlin"),
    ("Greece", "Athens"),
    ("Hungary", "Budapest"),
    ("Iceland", "Reykjavik"),
    ("Iran", "Tehran"),
    ("Ireland", "Dublin"),
    ("Italy", "Rome"),
    ("Japan", "Tokyo"),
    ("Kenya", "Nairobi"),
    ("Norway", "Oslo"),
    ("Peru", "Lima"),
    ("Poland", "Warsaw"),
    ("Portugal", "Lisbon"),
    ("Romania", "Bucharest"),
    ("Russia", "Moscow"),
    ("Spain", "Madrid"),
    ("Sweden", "Stockholm"),
    ("Thailand", "Bangkok"),
    ("Turkey", "Ankara"),
    ("Vietnam", "Hanoi"),
];

const COUNTRIES: &[(&str, &str)] = &[
    ("Vienna", "Austria"),
    ("Brasilia", "Brazil"),
    ("Sofia", "Bulgaria"),
    ("Ottawa", "Canada"),
    ("Santiago", "Chile"),
    ("Beijing", "China"),
    ("Havana", "Cuba"),
    ("Copenhagen", "Denmark"),
    ("Cairo", "Egypt"),
    ("London", "England"),
    ("Helsinki", "Finland"),
    ("Paris", "France"),
    ("Berlin", "Germany"),
    ("Athens", "Greece"),
    ("Budapest", "Hungary"),
    ("Reykjavik", "Iceland"),
    ("Tehran", "Iran"),
    ("Dublin", "Ireland"),
    ("Rome", "Italy"),
    ("Tokyo", "Japan"),
    ("Nairobi", "Kenya"),
    ("Oslo", "Norway"),
    ("Lima", "Peru"),
    ("Warsaw", "Poland"),
    ("Lisbon", "Portugal"),
    ("Bucharest", "Romania"),
    ("Moscow", "Russia"),
    ("Madrid", "Spain"),
    ("Stockholm", "Sweden"),
    ("Bangkok", "Thailand"),
    ("Ankara", "Turkey"),
    ("Hanoi", "Vietnam"),
];

const LANGUAGES: &[(&str, &str)] = &[
    ("Austria", "German"),
    ("Brazil", "Portuguese"),
    ("Bulgaria", "Bulgarian"),
    ("Chile", "Spanish"),
    ("China", "Chinese"),
    ("Cuba", "Spanish"),
    ("Denmark", "Danish"),
    ("Egypt", "Arabic"),
    ("England", "English"),
    ("Finland", "Finnish"),
    ("France", "French"),
    ("Germany", "German"),
    ("Greece", "Greek"),
    ("Hungary", "Hungarian"),
    ("Iceland", "Icelandic"),
    ("Iran", "Persian"),
    ("Italy", "Italian"),
    ("Japan", "Japanese"),
    ("Kenya", "Swahili"),
    ("Norway", "Norwegian"),
    ("Peru", "Spanish"),
    ("Poland", "Polish"),
    ("Portugal", "Portuguese"),
    ("Romania", "Romanian"),
    ("Russia", "Russian"),
    ("Spain", "Spanish"),
    ("Sweden", "Swedish"),
    ("Thailand", "Thai"),
    ("Turkey", "Turkish"),
    ("Vietnam", "Vietnamese"),
];

const LANDMARKS: &[(&str, &str)] = &[
    ("Eiffel Tower", "Paris"),
    ("Colosseum", "Rome"),
    ("Acropolis", "Athens"),
    ("Kremlin", "Moscow"),
    ("Brandenburg Gate", "Berlin"),
    ("Prado", "Madrid"),
    ("Little Mermaid", "Copenhagen"),
    ("Tower Bridge", "London"),
];

const SOUNDS: &[(&str, &str)] = &[
    ("bee", "buzz"),
    ("cat", "meow"),
    ("chick", "peep"),
    ("cow", "moo"),
    ("crow", "caw"),
    ("dog", "woof"),
    ("donkey", "bray"),
    ("dove", "coo"),
    ("duck", "quack"),
    ("frog", "croak"),
    ("goose", "honk"),
    ("hen", "cluck"),
    ("horse", "neigh"),
    ("lion", "roar"),
    ("mouse", "squeak"),
    ("owl", "hoot"),
    ("pig", "oink"),
    ("sheep", "baa"),
    ("snake", "hiss"),
    ("wolf", "howl"),
];

const YOUNG: &[(&str, &str)] = &[
    ("bear", "cub"),
    ("cat", "kitten"),
    ("cow", "calf"),
    ("deer", "fawn"),
    ("dog", "puppy"),
    ("duck", "duckling"),
    ("frog", "tadpole"),
    ("goat", "kid"),
    ("goose", "gosling"),
    ("hen", "chick"),
    ("horse", "foal"),
    ("kangaroo", "joey"),
    ("lion", "cub"),
    ("pig", "piglet"),
    ("rabbit", "bunny"),
    ("sheep", "lamb"),
    ("swan", "cygnet"),
];

const COLOURS: &[(&str, &str)] = &[
    ("ash", "grey"),
    ("blood", "red"),
    ("butter", "yellow"),
    ("chocolate", "brown"),
    ("cloth", "white"),
    ("coal", "black"),
    ("cocoa", "brown"),
    ("cotton", "white"),
    ("gold", "yellow"),
    ("grass", "green"),
    ("ink", "blue"),
    ("ketchup", "red"),
    ("lavender", "purple"),
    ("milk", "white"),
    ("mud", "brown"),
    ("salmon", "pink"),
    ("silver", "grey"),
    ("snow", "white"),
    ("spinach", "green"),
    ("tar", "black"),
];

const OPPOSITES: &[(&str, &str)] = &[
    ("bad", "good"),
    ("big", "small"),
    ("clean", "dirty"),
    ("cold", "hot"),
    ("dark", "light"),
    ("deep", "shallow"),
    ("dirty", "clean"),
    ("dry", "wet"),
    ("early", "late"),
    ("empty", "full"),
    ("fast", "slow"),
    ("full", "empty"),
    ("good", "bad"),
    ("happy", "sad"),
    ("hard", "soft"),
    ("high", "low"),
    ("hot", "cold"),
    ("late", "early"),
    ("light", "dark"),
    ("long", "short"),
    ("loud", "quiet"),
    ("low", "high"),
    ("narrow", "wide"),
    ("new", "old"),
    ("old", "new"),
    ("poor", "rich"),
    ("quiet", "loud"),
    ("rich", "poor"),
    ("sad", "happy"),
    ("shallow", "deep"),
    ("short", "long"),
    ("slow", "fast"),
    ("small", "big"),
    ("soft", "hard"),
    ("strong", "weak"),
    ("thick", "thin"),
    ("thin", "thick"),
    ("weak", "strong"),
    ("wet", "dry"),
    ("wide", "narrow"),
];

pub(super) fn texts() -> Vec<&'static str> {
    RELATIONS
        .iter()
        .flat_map(|relation| {
            let pairs = relation.pairs.iter().flat_map(|(of, is)| [*of, *is]);
            pairs.chain(relation.phrasings.iter().copied())
        })
        .collect()
}

pub(super) fn sentence(split: Split, rng: &mut impl Rng) -> Sentence {
    // Every fact as often as every other.
    let facts = || RELATIONS.iter().flat_map(|relation| relation.pairs.iter().map(move |pair| (relation, pair)));
    let (relation, (of, is)) = facts().nth(rng.random_range(0..facts().count())).expect("in range");
    // One phrasing of each fact is held out.
    let held_out = fingerprint(&format!("{of} {is}")) as usize % relation.phrasings.len();
    let phrasing = match split {
        Split::HeldOut => relation.phrasings[held_out],
        Split::Train => loop {
            let phrasing = pick(relation.phrasings, rng);
            if phrasing != relation.phrasings[held_out] {
                break phrasing;
            }
        },
    };
    Sentence::new(Task::Fact, &fill(phrasing, &[("of", of), ("is", is)]), None)
}
