//! Agreement: a verb whose subject is one or many, across a noun that may be the other.
//!
//! Held-out questions always have a distractor of the other number: its neighbour would answer them wrongly.

use rand::Rng;

use super::{belongs, fill, pick, Sentence, Split, Task};

const WITH_A_DISTRACTOR: &[&str] = &[
    "The {subject} {near} the {distractor}| {is} {adjective}.",
    "The {subject} {near} the {other} {distractor}| {is} {adjective}.",
    "The {subject} that the {person} {bought}| {is} {adjective}.",
    "I know that the {subject} {near} the {distractor}| {is} {adjective}.",
    "Today the {subject} {near} the {distractor}| {is} {adjective}.",
    "Last year the {subject} {near} the {distractor}| {was} {adjective}.",
    "Last year the {subject} that the {person} {bought}| {was} {adjective}.",
];

const WITHOUT: &[&str] = &[
    "The {subject}| {is} {adjective}.",
    "Today the {subject}| {is} {adjective}.",
    "I know that the {subject}| {is} {adjective}.",
    "Last year the {subject}| {was} {adjective}.",
];

/// One, and many.
type Noun = [&'static str; 2];

const NOUNS: &[Noun] = &[
    ["apple", "apples"],
    ["bell", "bells"],
    ["bench", "benches"],
    ["bicycle", "bicycles"],
    ["boat", "boats"],
    ["box", "boxes"],
    ["bridge", "bridges"],
    ["cabinet", "cabinets"],
    ["car", "cars"],
    ["carpet", "carpets"],
    ["chair", "chairs"],
    ["clock", "clocks"],
    ["curtain", "curtains"],
    ["desk", "desks"],
    ["door", "doors"],
    ["fence", "fences"],
    ["fountain", "fountains"],
    ["gate", "gates"],
    ["glass", "glasses"],
    ["hammer", "hammers"],
    ["key", "keys"],
    ["ladder", "ladders"],
    ["mirror", "mirrors"],
    ["painting", "paintings"],
    ["piano", "pianos"],
    ["pillow", "pillows"],
    ["plate", "plates"],
    ["shelf", "shelves"],
    ["ship", "ships"],
    ["spoon", "spoons"],
    ["statue", "statues"],
    ["table", "tables"],
    ["tent", "tents"],
    ["tree", "trees"],
    ["truck", "trucks"],
    ["vase", "vases"],
    ["wagon", "wagons"],
    ["wheel", "wheels"],
    ["window", "windows"],
    ["wall", "walls"],
];

const PEOPLE: &[Noun] = &[
    ["artist", "artists"],
    ["doctor", "doctors"],
    ["farmer", "farmers"],
    ["guest", "guests"],
    ["merchant", "merchants"],
    ["neighbour", "neighbours"],
    ["painter", "painters"],
    ["sailor", "sailors"],
    ["soldier", "soldiers"],
    ["student", "students"],
    ["teacher", "teachers"],
    ["worker", "workers"],
];

const NEAR: &[&str] = &["near", "behind", "beside", "under", "above", "by", "next to", "in front of", "across from"];

const BOUGHT: &[&str] = &["bought", "found", "liked", "made", "painted", "saw", "wanted"];

const ADJECTIVES: &[&str] = &[
    "beautiful",
    "big",
    "black",
    "blue",
    "broken",
    "brown",
    "cheap",
    "clean",
    "dirty",
    "expensive",
    "famous",
    "green",
    "heavy",
    "new",
    "old",
    "red",
    "small",
    "strong",
    "white",
    "yellow",
];

/// In the present and in the past.
const VERBS: [Noun; 2] = [["is", "are"], ["was", "were"]];

pub(super) fn texts() -> Vec<&'static str> {
    let nouns = [NOUNS, PEOPLE, &VERBS].concat().concat();
    [WITH_A_DISTRACTOR, WITHOUT, &nouns, NEAR, BOUGHT, ADJECTIVES].concat()
}

pub(super) fn sentence(split: Split, rng: &mut impl Rng) -> Sentence {
    let subject = pick(NOUNS, rng);
    let alone = split == Split::Train && (!belongs(subject[0], 6, Split::Train) || rng.random_ratio(1, 8));
    if split == Split::HeldOut && !belongs(subject[0], 6, split) {
        return sentence(split, rng);
    }
    let distractor = loop {
        let noun = pick(NOUNS, rng);
        if noun != subject {
            break noun;
        }
    };
    let number = usize::from(rng.random::<bool>());
    let other = if split == Split::HeldOut { 1 - number } else { usize::from(rng.random::<bool>()) };
    let marked = fill(
        pick(if alone { WITHOUT } else { WITH_A_DISTRACTOR }, rng),
        &[
            ("subject", subject[number]),
            ("distractor", distractor[other]),
            ("person", pick(PEOPLE, rng)[other]),
            ("near", pick(NEAR, rng)),
            ("bought", pick(BOUGHT, rng)),
            ("adjective", pick(ADJECTIVES, rng)),
            ("other", pick(ADJECTIVES, rng)),
            ("is", VERBS[0][number]),
            ("was", VERBS[1][number]),
        ],
    );
    Sentence::new(Task::Agreement, &marked, None)
}
