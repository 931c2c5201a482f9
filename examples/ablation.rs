//! What does each task need? Heads are ablated, and the toy model answers questions of three kinds.
//!
//! Prints the share of right answers to repetitions of random words, to facts and to sentences with an indirect object: whole, then
//! with heads ablated, whose output becomes its mean over other texts. What will be seen: without L0H1, which carries the word five
//! places before to each position, no repetition is continued, and facts are known as before. Without three of the four
//! induction heads of layer 1, fewer than 60 % of the repetitions are, and nearly all facts are known. Without the heads of layer 3,
//! which move names, a quarter of the names is wrong, and the other tasks are as before.
//!
//! ```text
//! cargo run --release --example ablation
//! ```

use tch_lens::hook::HookPart;
use tch_lens::{hook, HookedTransformer, Hooks, PaddingSide, Patch, Result, RunOptions};

/// Words that are repeated in an order that no text has.
const WORDS: [&str; 24] = [
    "river", "green", "dog", "Paris", "table", "apple", "shop", "bag", "train", "door", "plate", "coal", "zoo",
    "grass", "year", "student", "quiet", "hat", "plane", "rabbit", "queen", "lion", "flower", "tree",
];
const FACTS: [(&str, &str); 12] = [
    ("The capital of France is", " Paris"),
    ("The capital of Italy is", " Rome"),
    ("The capital of Spain is", " Madrid"),
    ("The capital of Japan is", " Tokyo"),
    ("The capital of Norway is", " Oslo"),
    ("The capital of Portugal is", " Lisbon"),
    ("The capital of Chile is", " Santiago"),
    ("The capital of Cuba is", " Havana"),
    ("The capital of Egypt is", " Cairo"),
    ("The capital of Greece is", " Athens"),
    ("The capital of Germany is", " Berlin"),
    ("The capital of Sweden is", " Stockholm"),
];
const NAMES: [&str; 6] = ["Mary", "John", "Anna", "Peter", "Laura", "Adam"];

/// A prompt and the token that continues it.
type Question = (String, String);

fn main() -> Result<()> {
    tch_lens::tune_allocator();
    let model = HookedTransformer::toy()?;
    let tasks = [repetitions(&model)?, facts(), names()];
    let texts: Vec<&str> = tasks.iter().flatten().map(|(prompt, _)| prompt.as_str()).collect();
    let run = RunOptions::new().cache("z").padding_side(PaddingSide::Right);
    let mean = Patch::mean(&model.run(texts, run)?.cache);
    let ablations: [(&str, Vec<HookPart>); 4] = [
        ("whole", Vec::new()),
        ("without L0H1", vec![hook::z(0).head(1)]),
        ("without L1H0 to L1H2", vec![hook::z(1).head(0..3)]),
        ("without layer 3's heads", vec![hook::z(3).into()]),
    ];
    println!("{:<24} {:>11} {:>7} {:>7}", "", "repetitions", "facts", "names");
    for (what, heads) in ablations {
        let mut hooks = Hooks::new();
        if !heads.is_empty() {
            hooks = hooks.patch(heads, mean.clone());
        }
        let mut ablated = model.with_hooks(hooks);
        print!("{what:<24}");
        for (questions, width) in tasks.iter().zip([11, 7, 7]) {
            let mut right = 0;
            for (prompt, answer) in questions {
                let logits = ablated.run(prompt.as_str(), RunOptions::new().logits_at(-1))?.take_logits()?;
                let said = logits.view(-1).argmax(-1, false).int64_value(&[]);
                right += usize::from(model.to_single_str_token(said)? == *answer);
            }
            let share = 100.0 * right as f64 / questions.len() as f64;
            print!(" {:>width$}", format!("{share:.0} %"));
        }
        println!();
    }
    Ok(())
}

/// Spans of eight to fifteen words, said twice but for the last word.
fn repetitions(model: &HookedTransformer) -> Result<Vec<Question>> {
    let words: Vec<&str> =
        WORDS.into_iter().filter(|word| model.to_single_token(&format!(" {word}")).is_ok()).collect();
    let n = words.len();
    let span = |i: usize| {
        let step = [5, 7, 11, 13][i % 4];
        let words: Vec<String> = (0..8 + i % 8).map(|k| format!(" {}", words[(i + k * step) % n])).collect();
        let answer = words[words.len() - 1].clone();
        (format!("{}{}", words.concat(), words[..words.len() - 1].concat()), answer)
    };
    Ok((0..40).map(span).collect())
}

fn facts() -> Vec<Question> {
    FACTS.map(|(prompt, answer)| (prompt.into(), answer.into())).into()
}

/// Two names, one of which gives a bag to the other.
fn names() -> Vec<Question> {
    let pairs = NAMES.iter().flat_map(|a| NAMES.iter().map(move |b| (a, b))).filter(|(a, b)| a != b);
    pairs.map(|(a, b)| (format!("When {a} and {b} went to the shop, {b} gave a bag to"), format!(" {a}"))).collect()
}
