//! Years: what ends, ends after it began. A year is two tokens, its century and its two last digits.

use rand::Rng;

use super::{belongs, fill, pick, Sentence, Split, Task};

const TEMPLATES: &[&str] = &[
    "The {event} lasted from {century}{start} to {century}|{end}.",
    "The {event} went on from {century}{start} until {century}|{end}.",
    "The {event} began in {century}{start} and ended in {century}|{end}.",
    "The {event} started in the year {century}{start} and was over in the year {century}|{end}.",
    "From {century}{start} to {century}|{end} there was a {event}.",
    "The {ruler} ruled from {century}{start} to {century}|{end}.",
    "The {ruler} was born in {century}{start} and died in {century}|{end}.",
    "The {building} was built between {century}{start} and {century}|{end}.",
];

const EVENTS: &[&str] = &[
    "crisis",
    "drought",
    "famine",
    "festival",
    "feud",
    "journey",
    "plague",
    "project",
    "rebellion",
    "search",
    "siege",
    "strike",
    "struggle",
    "trial",
    "truce",
    "voyage",
    "war",
];

const RULERS: &[&str] = &["bishop", "duke", "emperor", "general", "king", "prince", "princess", "queen"];

const BUILDINGS: &[&str] = &["bridge", "castle", "church", "library", "palace", "station", "theatre", "wall"];

pub(super) fn texts() -> Vec<&'static str> {
    [TEMPLATES, EVENTS, RULERS, BUILDINGS].concat()
}

pub(super) fn sentence(split: Split, rng: &mut impl Rng) -> Sentence {
    let century = rng.random_range(11..=19);
    let year = |digits: u32| format!("{century}{digits:02}");
    let start = loop {
        let start = rng.random_range(0..=97);
        if belongs(&year(start), 8, split) {
            break start;
        }
    };
    let end = loop {
        let end = rng.random_range(start + 1..=99);
        // The last year may be the only one left, so it is never held out.
        if split == Split::HeldOut || end == 99 || belongs(&year(end), 8, split) {
            break end;
        }
    };
    let [start_digits, end_digits] = [start, end].map(|digits| format!("{digits:02}"));
    let marked = fill(
        pick(TEMPLATES, rng),
        &[
            ("century", &century.to_string()),
            ("start", &start_digits),
            ("end", &end_digits),
            ("event", pick(EVENTS, rng)),
            ("ruler", pick(RULERS, rng)),
            ("building", pick(BUILDINGS, rng)),
        ],
    );
    let later = (start + 1..=99).map(|digits| format!("{digits:02}")).collect();
    Sentence::new(Task::Year, &marked, Some(later))
}
