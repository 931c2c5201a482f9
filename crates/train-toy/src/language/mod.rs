//! The toy model's language: simple English of five kinds of sentences, each with one word that can be known in one
//! way only.
//!
//! | kind | example | how the answer is known |
//! | --- | --- | --- |
//! | indirect object | When Mary and John went to the shop, John gave a bag to → Mary | the name that was said once |
//! | fact | The capital of France is → Paris | by heart |
//! | repetition | river green dog river → green | what came after the word before |
//! | agreement | The keys near the cabinet → are | the subject's number, across a distractor |
//! | year | The war lasted from 1732 to 17 → 45 | greater than what was said before |
//!
//! What is held out of the training is decided by a rule and not by chance, so that it is the same in the trainer and
//! in the tests:
//!
//! | kind | never seen in training |
//! | --- | --- |
//! | indirect object | the two names in one sentence |
//! | fact | the fact in this phrasing; every other fact is seen in it, and this fact in every other |
//! | repetition | any two neighbours of the span as neighbours |
//! | agreement | the subject with a distractor: its number is known from sentences without one only |
//! | year | the first year, anywhere |
//!
//! The module needs nothing but `rand`; what turns sentences into tokens is elsewhere.

mod agreement;
mod facts;
mod names;
mod spans;
mod years;

use std::collections::BTreeSet;
use std::fmt;

use rand::seq::IndexedRandom;
use rand::Rng;

/// A kind of sentence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Task {
    IndirectObject,
    Fact,
    Repetition,
    Agreement,
    Year,
}

impl Task {
    pub const ALL: [Task; 5] = [Task::IndirectObject, Task::Fact, Task::Repetition, Task::Agreement, Task::Year];
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Task::IndirectObject => "indirect object",
            Task::Fact => "fact",
            Task::Repetition => "repetition",
            Task::Agreement => "agreement",
            Task::Year => "year",
        })
    }
}

/// Which half of the language: what the model learns from, or what it is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    Train,
    HeldOut,
}

/// A text, divided before the word that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sentence {
    pub task: Task,
    /// What comes before the answer: `"The capital of France is"`.
    pub prompt: String,
    /// The tokens that are right here, each as it stands in a text: `[" Paris"]`.
    pub answers: Vec<String>,
    /// How this text goes on; it begins with one of the answers: `" Paris."`.
    pub rest: String,
}

impl Sentence {
    /// From a text whose answer is marked by a bar: `"The capital of France is| Paris."`. The answer is the bar's next
    /// word, unless `answers` says what else is right.
    fn new(task: Task, marked: &str, answers: Option<Vec<String>>) -> Self {
        let (prompt, rest) = marked.split_once('|').expect("a bar marks the answer");
        let word = rest.char_indices().skip(1).find(|(_, c)| !c.is_alphanumeric());
        let answer = &rest[..word.map_or(rest.len(), |(end, _)| end)];
        Sentence {
            task,
            prompt: prompt.into(),
            answers: answers.unwrap_or_else(|| vec![answer.into()]),
            rest: rest.into(),
        }
    }
}

/// A sentence of this kind.
pub fn sentence(task: Task, split: Split, rng: &mut impl Rng) -> Sentence {
    match task {
        Task::IndirectObject => names::sentence(split, rng),
        Task::Fact => facts::sentence(split, rng),
        Task::Repetition => spans::sentence(split, rng),
        Task::Agreement => agreement::sentence(split, rng),
        Task::Year => years::sentence(split, rng),
    }
}

/// Every word of the language, without the spaces before them; numbers and punctuation apart.
pub fn words() -> BTreeSet<&'static str> {
    [names::texts(), facts::texts(), agreement::texts(), years::texts()]
        .into_iter()
        .flatten()
        .flat_map(words_of)
        .collect()
}

/// The words of a template, without its slots.
fn words_of(template: &'static str) -> impl Iterator<Item = &'static str> {
    template
        .split(['{', '}'])
        .step_by(2) // every other piece is a slot's name
        .flat_map(|piece| piece.split(|c: char| !c.is_ascii_alphabetic()))
        .filter(|word| !word.is_empty())
}

/// The template with its `{slots}` filled.
fn fill(template: &str, slots: &[(&str, &str)]) -> String {
    let mut pieces = template.split(['{', '}']);
    let mut text = String::from(pieces.next().unwrap_or_default());
    while let (Some(slot), Some(after)) = (pieces.next(), pieces.next()) {
        let (_, value) =
            slots.iter().find(|(name, _)| *name == slot).expect("a template names only the slots that its kind has");
        text += value;
        text += after;
    }
    text
}

/// One of them.
fn pick<T: Copy>(of: &[T], rng: &mut impl Rng) -> T {
    *of.choose(rng).expect("no list of the language is empty")
}

/// A number that depends on the key only: FNV-1a, mixed so that its low bits are good.
fn fingerprint(key: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in key.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

/// Whether what this key names is in this half; one key in `of` is held out.
fn belongs(key: &str, of: u64, split: Split) -> bool {
    fingerprint(key).is_multiple_of(of) == (split == Split::HeldOut)
}
