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
use tch_lens::heads::RepeatedTokens;
use tch_lens::hook::HookPart;
use tch_lens::patching::{path_patch, path_patch_together, PatchAxis, PatchIndex, PathOptions};
use tch_lens::{hook, HookedTransformer, Hooks, Metric, PaddingSide, Patch, RunOptions};

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

// --- what the examples say of the model's circuits -------------------------------------------------------------------

/// `induction_heads`: heads of layer 1 look at the fifth word after the earlier occurrence, whatever the span; L0H1 and L0H3 look five
/// and four words back.
#[test]
fn layer_1_finds_earlier_occurrences_through_what_layer_0_carries() {
    let model = HookedTransformer::toy().unwrap();
    let is_word = |id: &i64| {
        let text = model.to_single_str_token(*id).unwrap();
        let word = text.strip_prefix(' ').unwrap_or_default().to_string();
        word.len() > 1 && word.chars().all(char::is_lowercase)
    };
    let words: Vec<i64> = (0..model.config().d_vocab as i64).filter(is_word).collect();
    for len in [10, 16] {
        let tokens = RepeatedTokens::new().len(len as usize).rows(16).among(words.clone()).tokens(&model).unwrap();
        let (_, cache) = model.run_with_cache_of(tokens, "pattern").unwrap();
        let most = |layer: i64, head: i64| {
            let pattern = cache[hook::pattern(layer)].select(1, head).mean_dim([0i64].as_slice(), false, None); // [query, key]
            let first = len + 2;
            let share =
                |back: &i64| pattern.diagonal(-back, 0, 1).slice(0, first - back, None, 1).mean(None).double_value(&[]);
            let best = (0..first).max_by(|a, b| share(a).total_cmp(&share(b))).unwrap();
            (best, share(&best))
        };
        for head in 0..4 {
            let (back, share) = most(1, head);
            assert!(back == len - 5 && share > 0.35, "L1H{head}, {len} words: {back} back, {share:.2}");
        }
        assert_eq!((most(0, 1).0, most(0, 3).0), (5, 4));
    }
}

/// `path_patching`: the heads of layer 3 move names, and L3H1 hears them in its values from layer 1.
#[test]
fn heads_of_layer_3_move_names_that_layer_1_tells_their_values() {
    let model = HookedTransformer::toy().unwrap();
    let base = "When Mary and John went to the shop, John gave a bag to";
    let (_, source) = model.run_with_cache_of("When Mary and John went to the shop, Mary gave a bag to", "z").unwrap();
    let metric = Metric::logit_diff(" Mary", " John");
    let heads = PatchIndex::new("z", [PatchAxis::Layer, PatchAxis::Head]);
    let options = PathOptions::new().through_mlps();
    let end = vec![hook::resid_post(-1).into()];
    let map = path_patch_together(&model, base, &source, &metric, &heads, end, options.clone()).unwrap();
    let whole = map.baseline().double_value(&[]);
    for (layer, head) in (0..4usize).flat_map(|layer| (0..4usize).map(move |head| (layer, head))) {
        let lost = whole - map.value(&[layer, head]).unwrap();
        assert_eq!(layer == 3, lost > 1.7, "L{layer}H{head}: {lost:.2} of {whole:.2}");
    }
    let to = |site: &str| {
        let receiver = PatchIndex::new(site, [PatchAxis::Layer, PatchAxis::Head]).layers(3).heads(1);
        let map = path_patch(&model, base, &source, &metric, &heads, &receiver, options.clone()).unwrap();
        map.tensor().view([4, 4]) - whole // [layer, head]
    };
    for site in ["q", "k"] {
        assert!(to(site).abs().max().double_value(&[]) < 0.15, "{site}");
    }
    let values = to("v");
    assert!(values.get(1).max().double_value(&[]) < -0.8, "{values}");
    assert!(
        values.index_select(0, &tch::Tensor::from_slice(&[0i64, 2])).abs().max().double_value(&[]) < 0.5,
        "{values}"
    );
}

/// `ablation`: what each task needs.
#[test]
fn ablated_induction_heads_cost_repetition_and_no_facts() {
    let model = HookedTransformer::toy().unwrap();
    let mut rng = StdRng::seed_from_u64(7);
    let texts = (0..100).map(|n| sentence(Task::ALL[n % 5], Split::Train, &mut rng));
    let texts: Vec<String> = texts.map(|s| s.prompt).collect();
    let run = RunOptions::new().cache("z").padding_side(PaddingSide::Right);
    let mean = Patch::mean(&model.run(texts, run).unwrap().cache);
    let right = |task, heads: HookPart| {
        let mut ablated = model.with_hooks(Hooks::new().patch(heads, mean.clone()));
        let mut rng = StdRng::seed_from_u64(2024);
        let mut right = 0;
        for _ in 0..100 {
            let sentence = sentence(task, Split::HeldOut, &mut rng);
            let run = RunOptions::new().logits_at(-1);
            let logits = ablated.run(sentence.prompt.as_str(), run).unwrap().take_logits().unwrap();
            let said = model.to_single_str_token(logits.view(-1).argmax(-1, false).int64_value(&[])).unwrap();
            right += usize::from(sentence.answers.contains(&said));
        }
        right
    };
    let (carrier, induction, movers) = (hook::z(0).head(1), hook::z(1).head(0..3), HookPart::from(hook::z(3)));
    let of =
        |heads: &HookPart| [Task::Repetition, Task::Fact, Task::IndirectObject].map(|task| right(task, heads.clone()));
    let [repetition, fact, _] = of(&carrier);
    assert!(repetition < 10 && fact > 95, "L0H1: {repetition}, {fact}");
    let [repetition, fact, _] = of(&induction);
    assert!(repetition < 60 && fact > 90, "L1H0 to L1H2: {repetition}, {fact}");
    let [repetition, fact, names] = of(&movers);
    assert!(repetition > 90 && fact > 90 && names < 85, "layer 3: {repetition}, {fact}, {names}");
}
