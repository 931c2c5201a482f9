//! Sweeps, path patching and circuits on random models, points and prompts: the figures of one run a patch, by hand.
//!
//! `TCH_LENS_CASES` sets the number of cases of each kind, and `TCH_LENS_SEED` the first of their seeds.

use tch::Tensor;
use tch_lens::circuits::{Circuit, CircuitEdge, CircuitTask, EdgeMethod, NodeMethod};
use tch_lens::config::{
    Activation, AttentionConfig, MlpConfig, NormConfig, NormPosition, Normalization, PerLayer, Positions, QkNorm,
    Reach, Rotary,
};
use tch_lens::hook::{self, HookName, HookPart, HookPoint};
use tch_lens::patching::{activation_patch, path_patch_together, PatchIndex, PatchingOptions, PathOptions};
use tch_lens::{
    Config, HookFilter, HookedTransformer, Hooks, LoadOptions, Metric, PaddingSide, Patch, RunOptions, Tokens,
};

use crate::circuit_families::{has, ByHand, Subject};
use crate::common::{fixtures, models, Tally};

/// Relative to the largest entry, or absolute where that is below one.
const TOLERANCE: f64 = 1e-8;

/// Numbers that follow from a seed: SplitMix64.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    fn often(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}

/// The seeds of this run.
fn seeds(few: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
    let first = number("TCH_LENS_SEED").unwrap_or(0);
    first..first + number("TCH_LENS_CASES").unwrap_or(few)
}

/// A model of random structure, or a fixture; `None` where the configuration is none.
fn subject(random: &mut Random) -> Option<(String, Subject)> {
    let folder = |which: &str, random: &mut Random| {
        let folders = std::fs::read_dir(fixtures().join(which)).unwrap();
        let mut names: Vec<String> = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        format!("{which}/{}", random.of(&names))
    };
    match random.below(4) {
        0 => {
            let name = folder("encoder_decoders", random);
            Some((name.clone(), Subject::new(&name)))
        }
        1 => {
            let name = folder("transformers", random);
            let load = LoadOptions::new().no_processing().kind(tch::Kind::Double);
            let grouped = load.open(fixtures().join(&name)).ok()?;
            Some((name, Subject { grouped, other: None }))
        }
        _ => {
            let config = config(random);
            config.validate().ok()?;
            Some((format!("{config:?}"), Subject { grouped: models::fresh(config), other: None }))
        }
    }
}

fn config(random: &mut Random) -> Config {
    let n_heads = random.of(&[1, 2, 4]);
    let d_head = random.of(&[4, 6]);
    let kind = random.of(&[Normalization::LN, Normalization::RMS, Normalization::LNPre, Normalization::None]);
    let position = random.of(&[
        NormPosition::Before,
        NormPosition::Before,
        NormPosition::After,
        NormPosition::BeforeAndAfter,
        NormPosition::InStream,
    ]);
    let mlp = match random.below(4) {
        0 => None,
        1 => Some(MlpConfig::gated(20, Activation::Silu)),
        _ => Some(MlpConfig::plain(24, random.of(&[Activation::GeluNew, Activation::Relu]))),
    };
    let positions = match random.below(4) {
        0 => Positions::rotary(Rotary::new(d_head, 100.0)),
        1 => Positions::None,
        2 => Positions::alibi(8.0),
        _ => Positions::Learned,
    };
    let attention = AttentionConfig {
        reach: PerLayer::All(random.of(&[Reach::Global, Reach::Global, Reach::Window(2), Reach::Chunk(3)])),
        scores_soft_cap: random.of(&[None, Some(3.0)]),
        qk_norm: random.of(&[None, None, Some(QkNorm::PerHead(Normalization::RMS))]),
        value_norm: random.of(&[None, None, Some(Normalization::RMS)]),
        sinks: random.often(20),
        ..AttentionConfig::default()
    };
    Config {
        n_key_value_heads: random.of(&[1, n_heads]),
        d_head,
        attention,
        positions,
        mlp,
        norms: NormConfig { position, ..NormConfig::new(kind) },
        parallel_attn_mlp: random.often(25),
        ..Config::new(1 + random.below(3), random.of(&[12, 16]), n_heads, 16, 12)
    }
}

/// Two prompts of each batch, which differ from some position on; sometimes padded.
fn prompts(model: &HookedTransformer, random: &mut Random) -> (Tokens, Tokens) {
    let (rows, len) = (2, 3 + random.below(4));
    let d_vocab = model.config().d_vocab.min(12);
    let base: Vec<Vec<i64>> = (0..rows).map(|_| (0..len).map(|_| random.below(d_vocab) as i64).collect()).collect();
    let first = random.below(len);
    let other: Vec<Vec<i64>> = base
        .iter()
        .map(|row| (0..len).map(|i| if i < first { row[i] } else { random.below(d_vocab) as i64 }).collect())
        .collect();
    let padded = model.encoder_output().is_none() && random.often(30);
    let side = random.of(&[PaddingSide::Left, PaddingSide::Right]);
    let tokens = |mut rows: Vec<Vec<i64>>| {
        if padded {
            rows[1].truncate(len - 1);
        }
        Tokens::padded(&rows, 0, side).unwrap()
    };
    (tokens(base), tokens(other))
}

fn metric(random: &mut Random) -> Metric<'static> {
    match random.below(4) {
        0 => Metric::prob(2),
        1 => Metric::new(|logits: &Tensor| logits.square().mean_dim([1i64, 2].as_slice(), false, None)),
        2 => Metric::log_prob(1),
        _ => Metric::logit_diff(1, 3),
    }
}

/// A part of a random point.
fn part(model: &HookedTransformer, points: &[HookPoint], len: i64, random: &mut Random) -> HookPart {
    let point = random.of(points);
    let mut part = HookPart::from(point);
    let axes = point.axes();
    if let Some(axis) = axes.head
        && random.often(60)
    {
        let (_, cache) = model.run_with_cache_of(vec![vec![1i64]; 2], point).unwrap();
        part = part.head(random.below(cache[point].size()[axis] as usize) as i64);
    }
    if axes.position.is_some() && random.often(60) {
        // What is padding in some row has no effect there.
        let position = random.below(len as usize) as i64;
        part = part.pos(tch_lens::Positions::from(position).with_padding());
    }
    part
}

fn relative(tally: &mut Tally, what: &str, ours: &Tensor, theirs: &Tensor) {
    let size = theirs.abs().max().double_value(&[]).max(1.0);
    tally.compare(what, &(ours / size), &(theirs / size), TOLERANCE);
}

/// Every figure of a sweep is that of a run with this patch alone.
#[test]
fn sweeps_are_runs_of_one_patch() {
    let (mut tally, mut tried) = (Tally::default(), 0);
    for seed in seeds(40) {
        let random = &mut Random(seed);
        let Some((what, Subject { grouped: model, .. })) = subject(random) else { continue };
        let (corrupted, clean) = prompts(&model, random);
        let len = corrupted.ids.size()[1];
        let config = model.config();
        let on_request = ["q_input", "k_input", "v_input", "mlp_in", "result", "ple.hook_in", "hook_cross_attn_in"];
        let points: Vec<HookPoint> = HookFilter::All
            .resolve(config)
            .unwrap()
            .into_iter()
            .chain(
                on_request.iter().flat_map(|site| (0..config.n_layers).filter_map(|l| (*site, l).resolve(config).ok())),
            )
            .filter(|point| point.expert().is_none() && !point.to_string().contains("indices"))
            .collect();
        let parts: Vec<HookPart> = (0..4).map(|_| part(&model, &points, len, random)).collect();
        let metric = metric(random);
        let of_parts: Vec<HookPoint> = parts.iter().map(HookPart::point).collect();
        let cache = model.run(clean, RunOptions::new().cache(of_parts)).unwrap().cache;
        let index = PatchIndex::of(parts.clone());
        let map = activation_patch(&model, corrupted.clone(), &cache, &metric, &index, PatchingOptions::new());
        let map = map.unwrap_or_else(|error| panic!("seed {seed}, {what}, {parts:?}: {error}")).rows().unwrap();
        for (i, part) in parts.iter().enumerate() {
            let hooks = Hooks::new().patch(part.clone(), Patch::set(&cache));
            let output = model.run(corrupted.clone(), RunOptions::new().hooks(hooks)).unwrap();
            let expected = metric.rows(output.logits().unwrap(), &output.cache).unwrap();
            relative(&mut tally, &format!("seed {seed}, {part}, {what}"), &map.get(i as i64), &expected);
        }
        tried += 1;
    }
    println!("{tried} models");
    tally.finish("sweeps of random patches");
}

/// Every figure of path patching is that of its three runs.
#[test]
fn paths_are_three_runs() {
    let (mut tally, mut tried) = (Tally::default(), 0);
    for seed in seeds(40) {
        let random = &mut Random(seed);
        let Some((what, Subject { grouped: model, .. })) = subject(random) else { continue };
        let (base, other) = prompts(&model, random);
        let len = base.ids.size()[1];
        let config = model.config();
        let existing = |points: Vec<HookPoint>| -> Vec<HookPoint> {
            points.into_iter().filter_map(|point| point.resolve(config).ok()).collect()
        };
        let layers = || 0..config.n_layers;
        let nodes = existing(layers().flat_map(|l| [hook::z(l), hook::cross_z(l), hook::mlp_out(l)]).collect());
        let embeddings = existing(layers().map(hook::ple_out).collect());
        let streams = existing(layers().flat_map(|l| [hook::resid_pre(l), hook::resid_mid(l)]).collect());
        let read = layers()
            .flat_map(|l| [hook::q(l), hook::k(l), hook::v(l), hook::mlp_in(l), hook::cross_q(l), hook::ple_in(l)]);
        let read = existing(read.chain([hook::resid_post(-1), hook::resid_pre(-1)]).collect());
        let senders = [nodes.clone(), embeddings.clone(), streams, vec![hook::embed()]].concat();
        let senders: Vec<HookPart> = (0..3).map(|_| part(&model, &senders, len, random)).collect();
        let receivers: Vec<HookPart> = (0..1 + random.below(2)).map(|_| part(&model, &read, len, random)).collect();
        let is_mlp = |point: &HookPoint| point.to_string().ends_with("mlp_out");
        let (options, free): (PathOptions, Vec<HookPoint>) = match random.below(3) {
            0 => (PathOptions::new(), vec![]),
            1 => (PathOptions::new().through_mlps(), nodes.iter().copied().filter(is_mlp).collect()),
            _ => {
                let node = random.of(&nodes);
                (PathOptions::new().through([HookPart::from(node)]), vec![node])
            }
        };
        let frozen: Vec<HookPoint> = nodes.into_iter().filter(|node| !free.contains(node)).chain(embeddings).collect();
        let metric = metric(random);
        let (_, source) = model.run_with_cache(other).unwrap();
        let index = PatchIndex::of(senders.clone());
        let map = path_patch_together(&model, base.clone(), &source, &metric, &index, receivers.clone(), options);
        let map = map.unwrap_or_else(|error| panic!("seed {seed}, {what}: {error}")).rows().unwrap();
        let (_, of_base) = model.run_with_cache(base.clone()).unwrap();
        for (i, sender) in senders.iter().enumerate() {
            let hooks = match frozen.is_empty() {
                true => Hooks::new(),
                false => Hooks::new().freeze(frozen.clone(), &of_base),
            };
            let hooks = hooks.patch(sender.clone(), Patch::set(&source));
            let points: Vec<HookPoint> = receivers.iter().map(HookPart::point).collect();
            let told = model.run(base.clone(), RunOptions::new().hooks(hooks).cache(points)).unwrap().cache;
            let hooks = Hooks::new().patch(receivers.clone(), Patch::set(&told));
            let output = model.run(base.clone(), RunOptions::new().hooks(hooks)).unwrap();
            let expected = metric.rows(output.logits().unwrap(), &output.cache).unwrap();
            let to: Vec<String> = receivers.iter().map(HookPart::to_string).collect();
            let what = format!("seed {seed}, {sender} to {to:?}, through {free:?}, {what}");
            relative(&mut tally, &what, &map.get(i as i64), &expected);
        }
        tried += 1;
    }
    println!("{tried} models");
    tally.finish("random paths");
}

/// Random edges by hand; both ends; sums of edges.
#[test]
fn edges_of_any_model_are_moved_by_hand() {
    let (mut tally, mut tried) = (Tally::default(), 0);
    for seed in seeds(30) {
        let random = &mut Random(seed);
        let Some((what, subject)) = subject(random) else { continue };
        // A ReLU has no slope where it bends, and a router none where it chooses others.
        // A network that chooses keys has no edges.
        if subject.grouped.config().attention.indexer.is_some() {
            continue;
        }
        let model = subject.grouped.ungrouped().unwrap();
        let smooth = !format!("{:?}", model.config().mlp).contains("Relu");
        let (base, other) = prompts(&model, random);
        let (clean, corrupted) = (base.ids, other.ids);
        let metric = Metric::logit_diff(1, 3);
        let task = CircuitTask::new(&subject.grouped, &clean, subject.ablation(&corrupted), &metric)
            .unwrap_or_else(|error| panic!("seed {seed}, {what}: {error}"));
        let by_hand = ByHand::new(&subject, &model, &metric, &clean, &corrupted);
        let scores = task.edge_scores(EdgeMethod::Gradient).unwrap();
        let edges: Vec<CircuitEdge> = task.graph().edges().collect();
        for _ in 0..4 {
            let edge = random.of(&edges);
            let what = format!("seed {seed}, {edge}, {what}");
            let without = Circuit::full(task.graph().clone()).without([edge]).unwrap();
            let ours = Tensor::from(task.metric_of(&without).unwrap());
            relative(&mut tally, &what, &ours, &Tensor::from(by_hand.moved(edge, 1.0)));
            if smooth && has(model.config(), hook::mlp_out(0)) && model.config().experts().is_none() {
                let slope = (by_hand.moved(edge, 1e-4) - by_hand.moved(edge, -1e-4)) / 2e-4;
                let scale = 100.0 * (1.0 + slope.abs());
                let ours = Tensor::from(scores.get(edge).unwrap() / scale);
                tally.compare(&format!("{what}, slope"), &ours, &Tensor::from(slope / scale), 1e-7);
            }
        }
        let sums = Tensor::from_slice(&scores.by_sender());
        let nodes = task.node_scores(NodeMethod::Gradient).unwrap();
        relative(&mut tally, &format!("seed {seed}, sums, {what}"), &Tensor::from_slice(nodes.scores()), &sums);
        let value = |model: &HookedTransformer, tokens: &Tensor| {
            let output = model.run(tokens, RunOptions::new()).unwrap();
            metric.scalar(output.logits().unwrap(), &output.cache).unwrap()
        };
        let other = value(&subject.ablated(&model), &corrupted);
        relative(
            &mut tally,
            &format!("seed {seed}, no edges, {what}"),
            &Tensor::from(task.ablated_metric().unwrap()),
            &other,
        );
        tried += 1;
    }
    println!("{tried} models");
    tally.finish("edges of random models");
}
