//! Repetition: a span of random words, said twice. Nothing but the first time tells the second.

use std::sync::LazyLock;

use rand::Rng;

use super::{belongs, pick, words, Sentence, Split, Task};

/// Any word of the language, and any number of two digits.
static WORDS: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
    let numbers = (0..100).map(|number| &*format!("{number:02}").leak());
    words().into_iter().chain(numbers).collect()
});

pub(super) fn sentence(split: Split, rng: &mut impl Rng) -> Sentence {
    let length = if rng.random_ratio(3, 4) { rng.random_range(5..=10) } else { rng.random_range(11..=28) };
    let span = span(length, split, rng);
    // How much of the second time is in the prompt. In training all of it is answers, but for its first word.
    let said = if split == Split::Train { 1 } else { rng.random_range(1..length) };
    let [once, begun, rest] = [&span[..], &span[..said], &span[said..]].map(spoken);
    let more = once.repeat(rng.random_range(0..=(24 / length)));
    Sentence::new(Task::Repetition, &format!("{once}{begun}|{rest}{more}."), None)
}

/// Different words, of which no two neighbours are neighbours in the other split.
fn span(length: usize, split: Split, rng: &mut impl Rng) -> Vec<&'static str> {
    let mut span = vec![pick(&WORDS, rng)];
    while span.len() < length {
        let word = pick(&WORDS, rng);
        if !span.contains(&word) && neighbours(span[span.len() - 1], word, split) {
            span.push(word);
        }
    }
    // In training the second time follows the first, so the span's ends are neighbours as well.
    if split == Split::Train && !neighbours(span[length - 1], span[0], split) {
        return self::span(length, split, rng);
    }
    span
}

fn neighbours(left: &str, right: &str, split: Split) -> bool {
    belongs(&format!("{left} {right}"), 8, split)
}

fn spoken(words: &[&str]) -> String {
    words.iter().flat_map(|word| [" ", word]).collect()
}
