//! The model that the crate carries knows its language, also what it never saw of it.

// The trainer's own language and examination.
#[path = "../../crates/train-toy/src/exam.rs"]
mod exam;
#[path = "../../crates/train-toy/src/language/mod.rs"]
mod language;

use language::{sentence, Split, Task};
use rand::rngs::StdRng;
use rand::SeedableRng;
use rstest::rstest;
use tch_lens::HookedTransformer;

#[rstest]
#[case(Task::IndirectObject)]
#[case(Task::Fact)]
#[case(Task::Repetition)]
#[case(Task::Agreement)]
#[case(Task::Year)]
fn answers_what_it_never_saw(#[case] task: Task) {
    let model = HookedTransformer::toy().unwrap();
    let mark = exam::examine(&model, task, 400).unwrap();
    assert!(mark.right >= 0.95, "{task}: {mark:?}");
    // The last years of a century are right after any year: the probability of the years before must be small, too.
    assert!(mark.probability >= 0.9, "{task}: {mark:?}");
}

#[test]
fn every_sentence_is_in_its_vocabulary() {
    let model = HookedTransformer::toy().unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let unknown = model.to_single_token("<|unknown|>").unwrap();
    let mut rng = StdRng::seed_from_u64(0);
    for n in 0..5000 {
        let split = if n % 2 == 0 { Split::Train } else { Split::HeldOut };
        let sentence = sentence(Task::ALL[n % 5], split, &mut rng);
        let text = format!("{}{}", sentence.prompt, sentence.rest);
        let ids = tokenizer.encode(&text, false).unwrap();
        assert!(!ids.contains(&unknown), "{text}");
        // The trainer cuts what comes after a long span's second time; a question always fits.
        assert!(tokenizer.encode(&sentence.prompt, true).unwrap().len() <= model.config().n_ctx, "{text}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert!(sentence.answers.iter().any(|answer| sentence.rest.starts_with(answer.as_str())), "{text}");
    }
}

/// What is held out is decided by rules, and these are the rules: no training sentence has what they name.
#[test]
fn held_out_is_never_trained() {
    use std::collections::HashSet;
    let mut rng = StdRng::seed_from_u64(0);
    let mut draw = |task, split, n: usize| -> Vec<_> { (0..n).map(|_| sentence(task, split, &mut rng)).collect() };

    let trained: HashSet<_> = draw(Task::Fact, Split::Train, 20_000).into_iter().map(|s| s.prompt).collect();
    assert!(draw(Task::Fact, Split::HeldOut, 1000).iter().all(|s| !trained.contains(&s.prompt)));

    let years = |text: &str| -> Vec<String> {
        text.split(|c: char| !c.is_ascii_digit()).filter(|year| year.len() == 4).map(String::from).collect()
    };
    let trained: HashSet<_> =
        draw(Task::Year, Split::Train, 20_000).iter().flat_map(|s| years(&format!("{}{}", s.prompt, s.rest))).collect();
    assert!(draw(Task::Year, Split::HeldOut, 1000).iter().all(|s| !trained.contains(&years(&s.prompt)[0])));

    let neighbours = |text: &str| -> Vec<(String, String)> {
        let words: Vec<_> = text.trim_matches([' ', '.']).split(' ').map(String::from).collect();
        words.windows(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
    };
    let trained: HashSet<_> = draw(Task::Repetition, Split::Train, 20_000)
        .iter()
        .flat_map(|s| neighbours(&format!("{}{}", s.prompt, s.rest)))
        .collect();
    for held_out in draw(Task::Repetition, Split::HeldOut, 1000) {
        // The span's last word and its first, where the second time begins, are the only neighbours free of the rule.
        let seen: HashSet<_> = neighbours(&held_out.prompt).into_iter().filter(|pair| trained.contains(pair)).collect();
        assert!(seen.len() <= 1, "{}: {seen:?}", held_out.prompt);
    }
}
