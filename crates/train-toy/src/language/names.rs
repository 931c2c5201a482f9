//! Indirect objects: two people, one of whom gives something to the other.
//!
//! The answer is the name that was said once. In one training sentence of six a third person gives, and either of the
//! two may receive: so the model learns to leave out who was said twice, and not merely who was said last.

use rand::Rng;

use super::{belongs, fill, pick, Sentence, Split, Task};

/// `{first}` and `{second}` are the two people in either order, `{giver}` is one of them again.
const TEMPLATES: &[&str] = &[
    "When {first} and {second} went to the {place}, {giver} {gave} a {thing} to| {receiver}.",
    "After {first} and {second} arrived at the {place}, {giver} {gave} a {thing} to| {receiver}.",
    "While {first} and {second} were working at the {place}, {giver} {gave} a {thing} to| {receiver}.",
    "As {first} and {second} were leaving the {place}, {giver} {gave} a {thing} to| {receiver}.",
    "Then {first} and {second} went to the {place}, and {giver} {gave} a {thing} to| {receiver}.",
    "Yesterday {first} and {second} had lunch at the {place}, and {giver} {gave} a {thing} to| {receiver}.",
    "{first} met {second} at the {place}, and {giver} {gave} a {thing} to| {receiver}.",
    "{first} and {second} met at the {place}. Later {giver} {gave} a {thing} to| {receiver}.",
    "{first} and {second} were at the {place}. {giver} {gave} a {thing} to| {receiver}.",
    "{first} and {second} are friends. Last week {giver} {gave} a {thing} to| {receiver}.",
    "{first} went to the {place} with {second}, where {giver} {gave} a {thing} to| {receiver}.",
    "{first} and {second} found a {thing} at the {place}, and {giver} gave it to| {receiver}.",
    "When {first} and {second} bought a {thing} at the {place}, {giver} decided to give it to| {receiver}.",
    "{first} and {second} had a long talk at the {place}. Afterwards {giver} said goodbye to| {receiver}.",
];

const NAMES: &[&str] = &[
    "Adam", "Alice", "Amy", "Andrew", "Anna", "Arthur", "Ben", "Betty", "Bob", "Carl", "Carol", "Charles", "Clara",
    "Daniel", "David", "Diana", "Edward", "Ellen", "Emily", "Emma", "Eric", "Eva", "Frank", "Fred", "George", "Hannah",
    "Harry", "Helen", "Henry", "Ivan", "Jack", "James", "Jane", "John", "Julia", "Kate", "Kevin", "Laura", "Leo",
    "Lisa", "Louis", "Lucy", "Maria", "Martin", "Mary", "Max", "Michael", "Nancy", "Nina", "Oliver", "Oscar", "Paul",
    "Peter", "Rachel", "Robert", "Rosa", "Ruth", "Sam", "Sarah", "Simon", "Sophie", "Steven", "Susan", "Thomas", "Tom",
    "Victor", "Walter", "William",
];

pub(super) const PLACES: &[&str] = &[
    "airport",
    "bakery",
    "bank",
    "beach",
    "castle",
    "church",
    "cinema",
    "farm",
    "harbour",
    "hospital",
    "hotel",
    "house",
    "lake",
    "library",
    "market",
    "museum",
    "office",
    "palace",
    "park",
    "restaurant",
    "river",
    "school",
    "shop",
    "stadium",
    "station",
    "theatre",
    "university",
    "zoo",
];

const THINGS: &[&str] = &[
    "bag",
    "ball",
    "basket",
    "book",
    "bottle",
    "cake",
    "camera",
    "candle",
    "card",
    "coat",
    "coin",
    "cup",
    "drink",
    "flower",
    "gift",
    "guitar",
    "hat",
    "jacket",
    "knife",
    "lamp",
    "letter",
    "map",
    "necklace",
    "newspaper",
    "pen",
    "pencil",
    "phone",
    "picture",
    "ring",
    "rose",
    "sandwich",
    "scarf",
    "ticket",
    "toy",
    "watch",
];

const GAVE: &[&str] = &["gave", "handed", "passed", "offered", "showed", "sold", "brought"];

pub(super) fn texts() -> Vec<&'static str> {
    [TEMPLATES, NAMES, PLACES, THINGS, GAVE].concat()
}

pub(super) fn sentence(split: Split, rng: &mut impl Rng) -> Sentence {
    let (receiver, giver) = loop {
        let (a, b) = (pick(NAMES, rng), pick(NAMES, rng));
        if together(a, b, split) {
            break (a, b);
        }
    };
    let (first, second) = if rng.random() { (receiver, giver) } else { (giver, receiver) };
    let third = pick(NAMES, rng);
    let by_another = split == Split::Train
        && rng.random_ratio(1, 6)
        && together(third, giver, split)
        && together(third, receiver, split);
    let marked = fill(
        pick(TEMPLATES, rng),
        &[
            ("first", first),
            ("second", second),
            ("giver", if by_another { third } else { giver }),
            ("receiver", receiver),
            ("place", pick(PLACES, rng)),
            ("thing", pick(THINGS, rng)),
            ("gave", pick(GAVE, rng)),
        ],
    );
    let either = by_another.then(|| vec![format!(" {receiver}"), format!(" {giver}")]);
    Sentence::new(Task::IndirectObject, &marked, either)
}

/// Whether these are two people who meet in this half, in either order.
fn together(a: &str, b: &str, split: Split) -> bool {
    a != b && belongs(&format!("{} and {}", a.min(b), a.max(b)), 8, split)
}
